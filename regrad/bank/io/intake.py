"""Taking atoms in from elsewhere: local copies, tensors without executing pickles, checks."""

from __future__ import annotations

import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from regrad.bank.config import CodecName
from regrad.bank.maintenance import SHARD_BYTES
from regrad.bank.manifest import Kind, Layout, Manifest, check_same_layout, current_version, read_manifest
from regrad.bank.writer import BankWriter
from regrad.errors import BankError, RegradError
from regrad.models.subspace import Subspace
from regrad.storage import Storage


def read_tensors(path: Path) -> Any:
    """What is in the file, mapped into memory where its format allows that.

    Raises `BankError` for a file that holds more than tensors, numbers, text, lists and dictionaries, without having
    run any of it; `BadAtom` for one that is missing or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise BankError(
            f"{path} is refused: it is not a file of plain tensors, and what else it asks for could run code "
            f"({_reason(error)})"
        ) from error
    except Exception as error:  # a damaged file makes the unpickler fail in any way
        reason = str(error).strip().splitlines()
        raise BadAtom(f"{path} cannot be read: {reason[0] if reason else type(error).__name__}") from error


def _reason(error: Exception) -> str:
    """The unpickler's own words, without its advice to load the file all the same."""
    found = re.search(r"(?:Unsupported \w+|GLOBAL|Trying to call)[^\n]{0,80}", str(error))
    return found[0] if found else "it is not a pickle of torch.save"


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


class BadAtom(BankError):
    """One passage of an import has no usable atom: it is quarantined, and the others are not in danger."""

    area = "bank.bad_atom"


@dataclass(frozen=True)
class Incoming:
    """One passage of an import: its atom [P] float32, or why it has none. An empty hash is an unknown text."""

    passage_id: str
    text_hash: str
    atom_P: Tensor | None
    problem: str = ""


@dataclass(frozen=True)
class Imported:
    """What an import has done; `left_out` counts atoms that nobody asked for."""

    manifest: Manifest
    added: int
    refused: int
    left_out: int = 0


def layout_for(uri: str, kind: Kind, fingerprint: str, subspace: Subspace, codec: CodecName | None) -> Layout:
    """The layout of what is to be added to the bank at `uri`: its codec is the bank's, or float32, if none is named."""
    found = layout_at(uri)
    chosen = codec or (found.codec if found else "float32")
    return Layout(kind=kind, fingerprint=fingerprint, codec=chosen, subspace=subspace.to_json())


def writer_for(uri: str, layout: Layout) -> BankWriter:
    """A writer into a new bank or one of this layout, with shards of some 64 MiB; raises `BankError` for another."""
    found = layout_at(uri)
    if found is not None:
        check_same_layout(found, layout, uri)
    writer = BankWriter(uri, layout)
    return BankWriter(uri, layout, max(1, SHARD_BYTES // writer.codec.record_bytes))


def take_in(uri: str, layout: Layout, passages: Iterable[Incoming], left_out: int = 0) -> Imported:
    """Add passages to a bank, all of them or, after an error, none.

    Raises `BankError` if no passage has an atom, if an id occurs twice or is not valid Unicode, or if the bank that is
    there has another layout.
    """
    writer, refused = writer_for(uri, layout), []
    for passage in passages:
        _check_id(passage.passage_id)
        if passage.atom_P is None:
            writer.refuse(passage.passage_id, passage.problem)
            refused.append(passage.problem)
        else:
            writer.add_atom(passage.passage_id, passage.text_hash, passage.atom_P)
    added = len(writer)
    if not added:
        why = f"; the first was refused because: {refused[0]}" if refused else ""
        raise BankError(f"no passage gave an atom, nothing was added to {uri}{why}")
    return Imported(writer.commit(), added, len(refused), left_out)


def layout_at(uri: str) -> Layout | None:
    """The layout of the bank at `uri`; None if there is none."""
    storage = Storage(uri)
    version = current_version(storage)
    return read_manifest(storage, version).layout if version else None


def _check_id(passage_id: str) -> None:
    try:
        passage_id.encode()
    except UnicodeEncodeError as error:
        raise BankError(f"passage id {passage_id!r:.80} holds a character that is not valid Unicode") from error
