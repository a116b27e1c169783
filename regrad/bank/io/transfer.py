"""Atoms on their way into a bank and out of one, whatever the format of the files; and from bank to bank.

In: a local copy of the source, tensors read without executing a pickle, a check of each atom, one commit. Out: some or
all atoms of a version, with their checksums checked.
"""

from __future__ import annotations

import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from regrad.bank.config import CodecName
from regrad.bank.format import (
    QUARANTINE,
    BankKind,
    Layout,
    Manifest,
    check_same_layout,
    current_version,
    read_manifest,
    read_table,
)
from regrad.bank.maintenance import SHARD_BYTES
from regrad.bank.reader import BankReader
from regrad.bank.shards import checked_records
from regrad.bank.writer import BankWriter, whole_index
from regrad.data.corpora import read_raw
from regrad.data.files import each_line, file_format, reading
from regrad.data.jsonl import as_object
from regrad.data.passages import passage_id_of
from regrad.errors import AtomNotFound, BankError, CorpusError, RegradError
from regrad.models.subspace import Subspace
from regrad.storage import Storage
from regrad.text import first_line


def read_tensors(path: Path) -> Any:
    """The content of a file of `torch.save`, mapped into memory where its format allows that.

    Raises `BankError` for a file that holds anything besides tensors, numbers, text, lists and dictionaries, without
    having run any of it; `BadAtom` for one that is missing or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # The unpickler's own words, without its advice to load the file anyway.
        found = re.search(r"(?:Unsupported \w+|GLOBAL|Trying to call)[^\n]{0,80}", str(error))
        reason = found[0] if found else "it is not a pickle of torch.save"
        raise BankError(
            f"{path} is refused: it is not a file of plain tensors, and anything else in it could run code ({reason})",
            code="unsafe_file",
            file=str(path),
            reason=reason,
        ) from error
    except Exception as error:  # a damaged file can make the unpickler fail in any way
        raise BadAtom(f"{path} cannot be read: {first_line(error)}", code="unreadable", file=str(path)) from error


@dataclass(frozen=True)
class LocalSource:
    """A file or directory to import, and the name that the user gave it."""

    path: Path
    uri: str

    def named(self, text: str) -> str:
        """The text with the user's name for the source instead of the local copy's."""
        return text.replace(str(self.path), self.uri)

    def renamed(self, passages: Iterable[Incoming]) -> Iterator[Incoming]:
        """The same passages; their problems name files as the user does."""
        for passage in passages:
            yield replace(passage, problem=self.named(passage.problem))


@contextmanager
def local_source(uri: str) -> Iterator[LocalSource]:
    """The file or directory at `uri`; a remote one is copied to a temporary directory, which is removed at the end.

    Raises `BankError` if there is nothing, `StorageError` if it cannot be copied.
    """
    storage = Storage(uri)
    if storage.is_local:
        if not Path(storage.root).exists():
            raise BankError(f"{uri} does not exist", code="source_not_found", uri=uri)
        yield LocalSource(Path(storage.root), uri)
        return
    files = storage.files()  # of a file, only itself, under an empty name
    if not files:
        raise BankError(f"{storage.uri} does not exist", code="source_not_found", uri=storage.uri)
    with tempfile.TemporaryDirectory(prefix="regrad-import.") as folder:
        source = LocalSource(Path(folder, PurePosixPath(storage.root).name), storage.uri)
        for name in sorted(files):
            if ".." in PurePosixPath(name).parts:
                raise BankError(
                    f"{storage.uri}/{name} leads out of the directory", code="outside", uri=f"{storage.uri}/{name}"
                )
            storage.download(name, source.path / name if name else source.path)
        try:
            yield source
        except RegradError as error:
            error.args = tuple(source.named(str(item)) for item in error.args)
            error.fields = {k: source.named(v) if isinstance(v, str) else v for k, v in error.fields.items()}
            raise


class BadAtom(BankError):
    """One passage of an import has no usable atom: it is put on the quarantine list, and the import continues."""

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
    """What an import has done; `left_out` counts atoms that the list of ids does not name."""

    manifest: Manifest
    added: int
    refused: int
    left_out: int = 0


def layout_for(
    uri: str,
    kind: BankKind,
    fingerprint: str,
    subspace: Subspace,
    codec: CodecName | None,
    translator: str | None = None,
) -> Layout:
    """The layout of atoms to be added to the bank at `uri`; without a codec the bank's, or float32 for a new bank."""
    found = layout_at(uri)
    chosen = codec or (found.codec if found else "float32")
    return Layout(kind=kind, fingerprint=fingerprint, translator=translator, codec=chosen, subspace=subspace.to_json())


def writer_for(uri: str, layout: Layout) -> BankWriter:
    """A writer to a new bank or one of this layout, with shards of about 64 MiB; raises `BankError` for another."""
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
        try:
            passage.passage_id.encode()
        except UnicodeEncodeError as error:
            name = repr(passage.passage_id)
            raise BankError(
                f"passage id {name:.80} holds a character that is not valid Unicode", code="bad_id", passage_id=name
            ) from error
        if passage.atom_P is None:
            writer.refuse(passage.passage_id, passage.problem)
            refused.append(passage.problem)
        else:
            writer.add_atom(passage.passage_id, passage.text_hash, passage.atom_P)
    added = len(writer)
    if not added:
        why = f"; the first was refused because: {refused[0]}" if refused else ""
        raise BankError(f"no passage gave an atom, nothing was added to {uri}{why}", code="no_atoms", uri=uri)
    return Imported(writer.commit(), added, len(refused), left_out)


def layout_at(uri: str) -> Layout | None:
    """The layout of the bank at `uri`; None if there is none."""
    storage = Storage(uri)
    version = current_version(storage)
    return read_manifest(storage, version).layout if version else None


_BATCH_BYTES = 32 * 1024 * 1024


def outgoing(
    uri: str, bank: BankReader, passage_ids: Sequence[str] | None = None
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Rows of the index with their records [n, record_bytes] uint8: of these passages, or of all that are not deleted.

    A batch takes at most 32 MiB as float32. Raises `AtomNotFound` at once for a passage without an atom, `AtomDamaged`
    on the way.
    """
    storage, manifest = Storage(uri), bank.manifest
    unknown = [passage_id for passage_id in passage_ids or () if passage_id not in bank]
    if unknown:
        raise AtomNotFound(
            f"version {manifest.version} of the bank at {uri} has no atom for {unknown[:5]}", passage_ids=unknown
        )
    index, shards = whole_index(storage, manifest)
    if passage_ids is not None:
        index = index.filter(pc.is_in(index["passage_id"], pa.array(passage_ids, pa.string())))
    else:
        index = index.filter(pa.array([name in bank for name in index["passage_id"].to_pylist()], pa.bool_()))
    at_once = max(1, _BATCH_BYTES // max(manifest.record_bytes, 4 * manifest.size))
    return checked_records(storage, manifest.record_bytes, index, shards, at_once)


def hash_of(row: dict[str, bytes | None]) -> str:
    """The text hash of a row of the index as 64 hex digits; empty if the text is not known."""
    found = row["text_hash"]
    return found.hex() if found else ""


def read_ids(uri: str) -> list[str]:
    """Passage ids from a file: those of its records if it is one of a corpus (.jsonl, .tsv, .parquet), else one a line.

    Raises `CorpusError` for a file that cannot be read, names no id, or has a record without one.
    """
    ids: list[str] = []
    if file_format(uri):
        for raw in read_raw(uri):
            record = as_object(raw.decode(), raw.where)
            ids.append(passage_id_of(record, raw.where))
    else:
        with reading(uri):
            ids = [line.decode().removesuffix("\r") for line, _, _ in each_line(uri) if line.strip()]
    if not ids:
        raise CorpusError(f"{uri} names no passage", code="empty", uri=uri)
    return ids


def copy_bank(
    source: str,
    target: str,
    version: int | None = None,
    codec: CodecName | None = None,
    passage_ids: Sequence[str] | None = None,
) -> Imported:
    """Copy the atoms of a version, or of some passages in it, into a new bank or an existing one.

    Without `version` it is the current one. Without `codec` it is the target's, or the source's for a new bank. With
    the source's codec, records are checked but not decoded. If everything is copied into a new bank, the quarantine
    list goes along. Raises `BankError` if the target is the source or has another layout, `AtomNotFound` for a passage
    without an atom, `AtomDamaged`; then nothing is committed.
    """
    if Storage(source).root == Storage(target).root:
        raise BankError(f"{target} is the bank itself; choose another place for the copy", code="same_bank", uri=target)
    with BankReader(source, version=version) as bank:
        records = outgoing(source, bank, passage_ids)
    found = layout_at(target)
    is_new = found is None
    chosen = codec or (found or bank.manifest).codec
    layout = bank.manifest.layout.model_copy(update={"codec": chosen})
    writer = writer_for(target, layout)
    for rows, read in records:
        batch = torch.from_numpy(read)
        if layout.codec != bank.manifest.codec:
            batch = writer.codec.encode(bank.codec.decode(batch))
        for row, record in zip(rows.to_pylist(), batch, strict=True):
            writer.add_record(row["passage_id"], hash_of(row), record)
    refused = []
    if is_new and passage_ids is None and bank.manifest.quarantine:
        refused = read_table(Storage(source), bank.manifest.quarantine, QUARANTINE).to_pylist()
    for row in refused:
        writer.refuse(row["passage_id"], row["reason"])
    added = len(writer)
    return Imported(writer.commit(), added, len(refused))
