"""The files of an index: their checksums, a local copy of those in an object store, and reading all to compare."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from regrad.digests import file_digest
from regrad.errors import RetrievalError
from regrad.settings import Settings
from regrad.storage import Storage, checked_copy, local_directory

_CHUNK = 1 << 22


class IndexFile(Settings):
    """One file of an index: its size, and the SHA-256 (hex) of its content."""

    bytes: int
    sha256: str


def index_file(path: Path) -> IndexFile:
    """The size and the checksum of a local file."""
    return IndexFile(bytes=path.stat().st_size, sha256=file_digest(path))


def local_index(uri: str, files: Mapping[str, IndexFile]) -> Path:
    """The folder of an index, or a local copy of one in an object store, whose card names these files.

    What is downloaded is hashed once, as it arrives. Raises `RetrievalError` for a file that is not what was written;
    then no copy is kept, so that the next opening fetches it again.
    """

    def check(name: str, path: Path) -> None:
        if name in files:
            _compare(uri, name, index_file(path), files[name])

    folder = local_directory(uri, check)
    if folder == checked_copy(uri) and any(_size(folder / name) != file.bytes for name, file in files.items()):
        shutil.rmtree(folder)  # someone has cleared or cut what lay in the cache
        folder = local_directory(uri, check)
    return folder


def check_content(uri: str, files: Mapping[str, IndexFile]) -> int:
    """Read every file of an index where it lies, and compare it with its checksum; returns the bytes.

    Raises `RetrievalError` at the first that is not what was written. A copy of it in this machine's cache that is
    damaged is removed: the next opening fetches it again.
    """
    storage = Storage(uri)
    for name, file in files.items():
        _compare(uri, name, _read(storage, name), file)
    copy = checked_copy(uri)
    if copy and any(not (copy / name).exists() or index_file(copy / name) != file for name, file in files.items()):
        shutil.rmtree(copy)
    return sum(file.bytes for file in files.values())


def _read(storage: Storage, name: str) -> IndexFile:
    digest, size = hashlib.sha256(), 0
    for chunk in storage.chunks(name, _CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return IndexFile(bytes=size, sha256=digest.hexdigest())


def _compare(uri: str, name: str, found: IndexFile, expected: IndexFile) -> None:
    if found != expected:
        raise RetrievalError(
            f"the index at {uri} is damaged: {name} has {found.bytes} bytes with the SHA-256 {found.sha256}, and "
            f"{expected.bytes} with {expected.sha256} were written; restore the file, or make the index again",
            code="damaged",
            uri=uri,
            file=name,
            found=found.sha256,
            expected=expected.sha256,
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
