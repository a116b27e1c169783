"""What is imported, on a local disk: a path as it is, what another URI names as a copy for the time of the import."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from regrad.bank.transfer.intake import Incoming
from regrad.errors import BankError, RegradError
from regrad.storage import Storage


@dataclass(frozen=True)
class LocalSource:
    """A file or directory to import, and the name that the user gave it."""

    path: Path
    uri: str

    def named(self, text: str) -> str:
        """The text with the user's name for it instead of the copy's."""
        return text.replace(str(self.path), self.uri)

    def renamed(self, passages: Iterable[Incoming]) -> Iterator[Incoming]:
        """The same passages; their problems call files by the user's name."""
        for passage in passages:
            yield replace(passage, problem=self.named(passage.problem))


@contextmanager
def local_source(uri: str) -> Iterator[LocalSource]:
    """The file or directory at `uri`; a remote one is copied into the temporary directory and removed at the end.

    Raises `BankError` if there is nothing, `StorageError` if it cannot be copied.
    """
    storage = Storage(uri)
    if storage.is_local:
        if not Path(storage.root).exists():
            raise BankError(f"{uri} does not exist")
        yield LocalSource(Path(storage.root), uri)
        return
    with tempfile.TemporaryDirectory(prefix="regrad-import.") as folder:
        source = LocalSource(Path(folder, PurePosixPath(storage.root).name), storage.uri)
        _download(storage, source.path)
        try:
            yield source
        except RegradError as error:
            error.args = tuple(source.named(str(item)) for item in error.args)
            raise


def _download(storage: Storage, target: Path) -> None:
    files = storage.files()
    if not files:
        raise BankError(f"{storage.uri} does not exist")
    if set(files) == {""}:  # it is a file itself
        storage.download("", target)
        return
    for name in sorted(files):
        if ".." in PurePosixPath(name).parts:
            raise BankError(f"{storage.uri}/{name} leads out of the directory")
        storage.download(name, target / name)
