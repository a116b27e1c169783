"""Shard files: writing records, reading rows, and scanning records with their checksums checked."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor

from regrad.bank.format import INDEX, SHARD_FOLDER, SHARDS, shard_path, table
from regrad.errors import AtomDamaged, BankError, StorageError
from regrad.storage import Storage

_ALIGNMENT = 64


@dataclass(frozen=True)
class ShardInfo:
    """One shard file: row i is the `record_bytes` bytes from `offset + i * record_bytes`."""

    shard: str
    rows: int
    offset: int
    bytes: int
    sha256: str


def write_shard(storage: Storage, records: Tensor | Sequence[Tensor]) -> tuple[ShardInfo, list[int]]:
    """Write records [n, record_bytes] uint8 (n at least 1) as one shard; returns it and the CRC-32 of each record.

    Separate contiguous tensors on the CPU are written as they are, without a copy that joins them.
    """
    rows = [record.numpy() for record in (records.cpu().contiguous() if isinstance(records, Tensor) else records)]
    # What the safetensors library writes before one tensor, padded with spaces so that records are aligned.
    entry = {"dtype": "U8", "shape": [len(rows), len(rows[0])], "data_offsets": [0, len(rows) * len(rows[0])]}
    text = json.dumps({"atoms": entry}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    with ThreadPoolExecutor(1) as thread:
        crcs = thread.submit(lambda: [zlib.crc32(row.data) for row in rows])
        name, digest, size = storage.write_named(SHARD_FOLDER, ".safetensors", header, *(row.data for row in rows))
    return ShardInfo(name.removeprefix(f"{SHARD_FOLDER}/"), len(rows), len(header), size, digest), crcs.result()


def shard_table(infos: Sequence[ShardInfo]) -> pa.Table:
    """Shards as a shard list."""
    return table(SHARDS, {name: [getattr(info, name) for info in infos] for name in SHARDS.names})


def read_rows(storage: Storage, shard: str, offset: int, record_bytes: int, first: int, count: int) -> np.ndarray:
    """Records [count, record_bytes] uint8 of consecutive rows, unchecked; raises `BankError` if they are not there."""
    start = offset + first * record_bytes
    try:
        data = storage.read(shard_path(shard), start, start + count * record_bytes)
    except StorageError as error:
        if storage.exists(shard_path(shard)):
            raise
        raise BankError(
            f"the bank at {storage.uri} lacks shard {shard}; restore it, or build again",
            code="shard_missing",
            shard=shard,
        ) from error
    if len(data) != count * record_bytes:
        raise BankError(
            f"shard {shard} of the bank at {storage.uri} is truncated; restore it, or build again",
            code="shard_truncated",
            shard=shard,
        )
    return np.frombuffer(data, np.uint8).reshape(count, record_bytes)


def checked_records(
    storage: Storage, record_bytes: int, index: pa.Table, shards: pa.Table, at_once: int
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """The rows of an index, at most `at_once` at a time, with their records [n, record_bytes] uint8.

    Raises `AtomDamaged` naming a passage whose record is not what was written, `BankError` for a shard that is missing.
    """
    offsets = dict(zip(shards["shard"].to_pylist(), shards["offset"].to_pylist(), strict=True))
    by_place = pa.table({**{name: index[name] for name in INDEX.names}, "shard": index["shard"].cast(pa.string())})
    order = by_place.sort_by([("shard", "ascending"), ("row", "ascending")])
    for start in range(0, len(order), at_once):
        rows = order.slice(start, at_once)
        records = np.concatenate(list(_runs(storage, rows, offsets, record_bytes)))
        columns = (rows[name].to_pylist() for name in ("passage_id", "shard", "crc32"))
        for passage_id, shard, crc32, record in zip(*columns, records, strict=True):
            if zlib.crc32(record) != crc32:
                raise AtomDamaged(
                    f"the atom of passage {passage_id!r} in shard {shard} is damaged and cannot be copied; nothing was "
                    "changed. Add the passage again, or delete it",
                    passage_id=passage_id,
                    shard=shard,
                )
        yield rows, records


def _runs(storage: Storage, rows: pa.Table, offsets: dict[str, int], record_bytes: int) -> Iterator[np.ndarray]:
    """The records of rows sorted by shard and row; consecutive rows are one read."""
    places = list(zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True))
    first = 0
    for i in range(1, len(places) + 1):
        if i < len(places) and places[i] == (places[i - 1][0], places[i - 1][1] + 1):
            continue
        shard, row = places[first]
        yield read_rows(storage, shard, offsets[shard], record_bytes, row, i - first)
        first = i
