"""Files on any fsspec URI (`file://`, a bare path, `s3://`): complete or absent, never half.

On a local file system a write goes to a temporary name and is renamed; an object store's put is atomic by itself.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec.implementations.local import LocalFileSystem

from regrad.digests import pieces_digest
from regrad.errors import StorageError
from regrad.text import first_line

_CHUNK = 1 << 24


class Storage:
    """One directory on one file system.

    Raises `StorageError` for anything the store refuses, naming the URI.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = str(uri).rstrip("/")
        if not self.uri or self.uri.endswith(":"):
            raise StorageError(
                f"{str(uri)!r} names no directory; give a path or a URI such as s3://bucket/folder",
                code="no_directory",
                uri=str(uri),
            )
        with self._errors("open"):
            self.fs, self.root = fsspec.core.url_to_fs(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether the directory is on this machine's file system."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """The file system's own path of `name` below this directory."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether `name` exists."""
        with self._errors("look up", name):
            return bool(self.fs.exists(self.path(name)))

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of `name`, or of the half-open range [start, end)."""
        with self._errors("read", name):
            return bytes(self.fs.cat_file(self.path(name), start=start, end=end))

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        """The bytes of `name`, at most `size` at a time."""
        with self._errors("read", name), self.fs.open(self.path(name), "rb", block_size=size) as file:
            while chunk := file.read(size):
                yield chunk

    def write(self, name: str, data: bytes) -> None:
        """Write `name` whole or not at all."""
        with self._errors("write", name):
            target = self.path(name)
            if self.is_local:
                with _temporary(Path(target), [data]) as temporary:
                    os.replace(temporary, target)
            else:
                self.fs.pipe_file(target, data)

    def write_named(self, folder: str, suffix: str, *chunks: bytes | memoryview) -> tuple[str, str, int]:
        """Write the chunks, one after the other, as a file named by its content; writing it again changes nothing.

        Returns the name `folder/<32 hex digits>suffix`, the SHA-256 (64 hex digits) and the bytes. On a local file
        system the hash is computed while the bytes are written.
        """
        with self._errors("write", folder):
            if not self.is_local:
                digest = pieces_digest(chunks)
                self.fs.pipe_file(self.path(f"{folder}/{digest[:32]}{suffix}"), b"".join(chunks))
            else:
                with ThreadPoolExecutor(1) as thread:
                    hashing = thread.submit(pieces_digest, chunks)
                    target = Path(self.path(folder))
                    with _temporary(target / f"new{suffix}", chunks) as temporary:
                        digest = hashing.result()
                        os.replace(temporary, target / f"{digest[:32]}{suffix}")
        return f"{folder}/{digest[:32]}{suffix}", digest, sum(len(chunk) for chunk in chunks)

    def create(self, name: str, data: bytes) -> bool:
        """Write `name` whole, unless it exists: of many that try at once, one succeeds. False if it was not this one.

        An object store decides by a conditional put (If-None-Match), a file system by a hard link.
        """
        with self._errors("write", name):
            if self.is_local:
                with _temporary(Path(self.path(name)), [data]) as temporary:
                    try:
                        os.link(temporary, self.path(name))
                    except FileExistsError:
                        return False
                return True
            try:
                self.fs.pipe_file(self.path(name), data, mode="create")
            except OSError:  # FileExistsError, or EINVAL from S3 servers other than AWS
                self.fs.invalidate_cache()
                if not self.fs.exists(self.path(name)):
                    raise
                # The put may have been ours, sent again because the answer was lost: its content tells.
                return bytes(self.fs.cat_file(self.path(name))) == data
        return True

    def files(self, name: str = "") -> dict[str, tuple[int, float]]:
        """Every file below `name`, by its path from here: its bytes, and when it was written (Unix seconds)."""
        with self._errors("list", name):
            self.fs.invalidate_cache()
            found = self.fs.find(self.path(name).rstrip("/"), detail=True)
        root = self.root.rstrip("/")
        return {path[len(root) + 1 :]: (int(info["size"]), _seconds(info)) for path, info in found.items()}

    def download(self, name: str, target: Path) -> None:
        """Copy `name` (empty: the URI itself, if it is a file) to a local path, and make that path's folders."""
        with self._errors("read", name):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(self.path(name) if name else self.root, str(target))

    def remove(self) -> None:
        """Remove the directory and everything in it, if it exists."""
        with self._errors("remove"):
            self.fs.invalidate_cache()
            if self.fs.exists(self.root):
                self.fs.rm(self.root, recursive=True)

    def remove_file(self, name: str) -> None:
        """Remove the file `name`, if it exists."""
        with self._errors("remove", name):
            self.fs.invalidate_cache()
            if self.fs.exists(self.path(name)):
                self.fs.rm_file(self.path(name))

    def list(self, name: str = "") -> list[str]:
        """File names (not paths) directly below `name`; empty when there is no such directory."""
        with self._errors("list", name):
            self.fs.invalidate_cache()
            if not self.fs.isdir(self.path(name).rstrip("/")):
                return []
            return sorted(str(path).rsplit("/", 1)[-1] for path in self.fs.ls(self.path(name), detail=False))

    @contextmanager
    def _errors(self, verb: str, name: str = "") -> Iterator[None]:
        where = f"{self.uri}/{name}" if name else self.uri
        try:
            yield
        except FileNotFoundError as error:
            raise StorageError(f"cannot {verb} {where}: it does not exist", code="not_found", uri=where) from error
        except (OSError, ValueError, ImportError, BotoCoreError) as error:
            raise StorageError(
                f"cannot {verb} {where}: {_reason(error)}",
                code="refused",
                uri=where,
                verb=verb,
                errno=getattr(error, "errno", None),
            ) from error


_WAYS_OUT = {
    errno.ENOSPC: "free some and run the same command again",
    errno.EDQUOT: "free some and run the same command again",
    errno.EACCES: "allow it for this user, or choose another place",
    errno.EPERM: "allow it for this user, or choose another place",
    errno.EROFS: "choose another place",
}


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        way_out = _WAYS_OUT.get(error.errno or 0)
        return f"{error.strerror}; {way_out}" if way_out else error.strerror
    return first_line(error)


@contextmanager
def _temporary(target: Path, chunks: Sequence[bytes | memoryview]) -> Iterator[Path]:
    """A file beside `target` with all chunks flushed to the disk; gone at the end unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _seconds(info: Mapping[str, Any]) -> float:
    value = info.get("mtime") or info.get("LastModified") or info.get("created") or 0.0
    return float(value.timestamp() if isinstance(value, datetime) else value)


def check_writable(uri: str) -> None:
    """Raise `StorageError` unless what is to be made at `uri` can be written: found before the work, and not after it.

    Nothing is left there. On a file system it is tried in the nearest directory that exists, in an object store below
    `uri`, as that may be all that this user may write to.
    """
    storage = Storage(uri)
    if storage.is_local:
        above = Path(storage.root).parent
        while not above.exists():
            above = above.parent
        storage = Storage(above)
    probe = f".{uuid.uuid4().hex}.tmp"
    try:
        storage.write(probe, b"")
        storage.remove_file(probe)
    except StorageError as error:
        reason = _reason(error.__cause__) if isinstance(error.__cause__, Exception) else str(error)
        text = f"nothing can be written at {uri}: {reason}"
        raise StorageError(text, code="refused", uri=uri, verb="write") from error


def same_place(uri: str) -> str:
    """A location in one of its forms, by which two that are the same are known, through symbolic links, too."""
    local = uri.removeprefix("file://")
    return local.rstrip("/") if "://" in local else os.path.realpath(local)


def content_of(uri: str) -> Iterator[bytes]:
    """The bytes of one file, some megabytes at a time."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    return Storage(folder or "/").chunks(name, _CHUNK)


def safetensors_header(read: Callable[[int, int], bytes], most: int) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, of which `read(start, end)` gives bytes: an entry for each tensor, unchecked.

    Also returns where the header ends: a file is 8 bytes with the header's length, the header, the tensors. At most
    `most` bytes of the header are read. Raises `ValueError` for a file without one.
    """
    length = int.from_bytes(read(0, 8), "little")
    header = json.loads(read(8, 8 + min(length, most)))
    if not isinstance(header, dict):
        raise ValueError(f"the header is not an object but {type(header).__name__}")
    return header, 8 + length


def parts_uri(output: str) -> str:
    """Where the finished parts of an output are kept until it is whole: beside it, in a directory of their own."""
    parent, _, name = output.rstrip("/").rpartition("/")
    return f"{parent}/.{name}.parts"


@contextmanager
def directory_writer(
    uri: str | os.PathLike[str], card: str, scratch: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """A local directory to fill; when the block ends without an error it becomes `uri`.

    What is there is replaced only if it is empty or of the same kind, that is, has a file named `card`: anything else
    raises `StorageError` before anything is written. Locally the swap is a rename. On an object store the files are put
    one by one, the card last. A process that is killed leaves what it has filled: beside `uri`, or in `scratch`, a
    directory of the same file system, if it is given and `uri` is local.
    """
    storage = Storage(uri)
    check_replaceable(uri, card)
    beside = Path(storage.root).parent if scratch is None else Path(Storage(scratch).root)
    parent = beside if storage.is_local else Path(tempfile.gettempdir())
    with storage._errors("write"):
        parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{Path(storage.root).name}.", dir=parent))
    try:
        yield staging
        with storage._errors("write"):
            staging.chmod(0o755)
            _swap_in(staging, Path(storage.root)) if storage.is_local else _upload(staging, storage, card)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap_in(staging: Path, target: Path) -> None:
    if not target.exists():
        os.rename(staging, target)
        return
    old = staging.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
    os.rename(target, old)
    try:
        os.rename(staging, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(uri: str | os.PathLike[str], card: str) -> None:
    """Raise `StorageError` if what exists at `uri` is neither empty nor a directory with a file `card`."""
    storage = Storage(uri)
    with storage._errors("look up"):
        if not storage.fs.exists(storage.root) or storage.fs.exists(storage.path(card)):
            return
        if storage.fs.isdir(storage.root) and not storage.fs.ls(storage.root):
            return
    raise StorageError(
        f"{uri} exists and has no {card}: it is something else and is left alone; choose another place",
        code="occupied",
        uri=str(uri),
        card=card,
    )


def _upload(staging: Path, storage: Storage, card: str) -> None:
    if storage.fs.exists(storage.path(card)):  # without its card, a half-replaced directory is not taken for whole
        storage.fs.rm_file(storage.path(card))
        storage.remove()
    files = [path for path in staging.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (path.name == card, str(path))):
        storage.fs.put_file(str(path), storage.path(path.relative_to(staging).as_posix()))


Check = Callable[[str, Path], None]
"""Called with the name of a file that was downloaded and its local path; raises if it is not what it should be."""


def local_directory(uri: str | os.PathLike[str], check: Check | None = None) -> Path:
    """A local path with the content of the directory `uri`; a remote one is downloaded once for each state of it.

    `check` sees each file as it arrives: if it raises, nothing is kept. What was downloaded without a check is
    downloaded again with one.
    """
    storage = Storage(uri)
    if storage.is_local:
        return Path(storage.root)
    with storage._errors("download"):
        target, names = _cached(storage, checked=check is not None)
        if not names:
            raise FileNotFoundError(storage.uri)
        if not target.exists():
            with directory_writer(target, card="") as staging:
                for name in names:
                    relative = name[len(storage.root) :].lstrip("/")
                    if ".." in Path(relative).parts:
                        raise ValueError(f"{name} leads out of the directory")
                    (staging / relative).parent.mkdir(parents=True, exist_ok=True)
                    storage.fs.get_file(name, str(staging / relative))
                    if check:
                        check(relative, staging / relative)
    return target


def checked_copy(uri: str | os.PathLike[str]) -> Path | None:
    """Where `local_directory` has put the remote directory `uri` as it is now, with a check; None if it has not."""
    storage = Storage(uri)
    if storage.is_local:
        return None
    with storage._errors("list"):
        target, _ = _cached(storage, checked=True)
    return target if target.exists() else None


def _cached(storage: Storage, checked: bool) -> tuple[Path, list[str]]:
    """The place of a download, and the files' names on the store.

    It is named by the listing: a directory that has changed since is another one, and is downloaded again.
    """
    storage.fs.invalidate_cache()
    listing = {name: file_version(info) for name, info in storage.fs.find(storage.root, detail=True).items()}
    named = (storage.uri, sorted(listing.items()), *(["checked"] if checked else []))
    return cache_directory() / hashlib.sha256(repr(named).encode()).hexdigest()[:24], list(listing)


def file_version(info: Mapping[str, Any]) -> tuple[Any, ...]:
    """What changes with a file's content, of what a file system says of it: its size, and its tag or time."""
    written = info.get("LastModified") or info.get("mtime") or info.get("created")
    return (info.get("size"), str(info.get("ETag") or written))


def cache_directory() -> Path:
    """Where downloads are kept: `$REGRAD_CACHE`, or `~/.cache/regrad`."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "regrad"
    return Path(os.environ.get("REGRAD_CACHE", default))
