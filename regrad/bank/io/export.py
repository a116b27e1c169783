"""Atoms on their way out: some or all of a version, with checksums checked; copying one bank into another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from regrad.bank.config import CodecName
from regrad.bank.io.intake import Imported, layout_at, writer_for
from regrad.bank.reader import BankReader
from regrad.bank.schemas import QUARANTINE, read_table
from regrad.bank.shards import checked_records
from regrad.bank.writer import BankWriter, whole_index
from regrad.data.files import each_line, reading
from regrad.data.jsonl import read_jsonl
from regrad.errors import AtomNotFound, BankError, CorpusError
from regrad.storage import Storage

_BATCH_BYTES = 32 * 1024 * 1024


def outgoing(
    uri: str, bank: BankReader, passage_ids: Sequence[str] | None = None
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Rows of the index with their records [n, record_bytes] uint8: of these passages, or of all that may be given out.

    A batch takes at most 32 MiB as float32. Raises `AtomNotFound` at once for a passage without an atom, `AtomDamaged`
    on the way.
    """
    storage, manifest = Storage(uri), bank.manifest
    unknown = [passage_id for passage_id in passage_ids or () if passage_id not in bank]
    if unknown:
        raise AtomNotFound(f"version {manifest.version} of the bank at {uri} has no atom for {unknown[:5]}")
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
    """Passage ids from a file: objects with `id` if it is called `.jsonl` (a corpus will do), else one id a line.

    Raises `CorpusError` for a file that cannot be read, names no id, or has a line without one.
    """
    ids = _ids_of_records(uri) if ".jsonl" in uri.rsplit("/", 1)[-1] else _ids_of_lines(uri)
    if not ids:
        raise CorpusError(f"{uri} names no passage")
    return ids


def _ids_of_records(uri: str) -> list[str]:
    ids = []
    for where, record in read_jsonl(uri):
        passage_id = record.get("id")
        if not isinstance(passage_id, str) or not passage_id:
            raise CorpusError(f"{where}: an object with id is expected, found {record!r:.80}")
        ids.append(passage_id)
    return ids


def _ids_of_lines(uri: str) -> list[str]:
    with reading(uri):
        return [line.decode().removesuffix("\r") for line, _, _ in each_line(uri) if line.strip()]


def copy_bank(
    source: str,
    target: str,
    version: int | None = None,
    codec: CodecName | None = None,
    passage_ids: Sequence[str] | None = None,
) -> Imported:
    """Copy a version's atoms (the one in force by default, or only these passages) into a new bank or an existing one.

    The codec is the target's, or the source's for a new bank, if none is named. With the source's own, records are
    checked and not decoded. The quarantine list goes along into a new bank if all is copied. Raises `BankError` if the
    target is the source or has another layout, `AtomNotFound` for a passage without an atom, `AtomDamaged`; nothing is
    committed then.
    """
    if Storage(source).root == Storage(target).root:
        raise BankError(f"{target} is the bank itself; choose another place for the copy")
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
    refused = _copy_quarantine(source, bank, writer) if is_new and passage_ids is None else 0
    added = len(writer)
    return Imported(writer.commit(), added, refused)


def _copy_quarantine(uri: str, bank: BankReader, writer: BankWriter) -> int:
    file = bank.manifest.quarantine
    refused = read_table(Storage(uri), file, QUARANTINE).to_pylist() if file else []
    for row in refused:
        writer.refuse(row["passage_id"], row["reason"])
    return len(refused)
