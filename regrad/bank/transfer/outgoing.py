"""The atoms of one version of a bank, read in the order in which they lie, for whoever copies them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regrad.bank.compact import whole_index
from regrad.bank.reader import BankReader
from regrad.bank.stream import checked_records
from regrad.corpus import read_records
from regrad.errors import AtomNotFound, CorpusError
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
    for number, record in read_records(uri):
        passage_id = record.get("id") if isinstance(record, dict) else None
        if not isinstance(passage_id, str) or not passage_id:
            raise CorpusError(f"{uri} line {number}: an object with id is expected, found {record!r:.80}")
        ids.append(passage_id)
    return ids


def _ids_of_lines(uri: str) -> list[str]:
    try:
        with fsspec.open(uri, "rt", encoding="utf-8-sig", compression="infer") as file:
            return [line.rstrip("\n") for line in file if line.strip()]
    except (OSError, ValueError, EOFError, ImportError) as error:
        raise CorpusError(f"{uri} cannot be read: {error}") from error
