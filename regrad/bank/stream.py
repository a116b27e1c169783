"""Reading many atoms of a bank in the order in which they lie: one read for each run of neighbours, each checked."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from regrad.bank.rows import INDEX
from regrad.bank.shards import read_rows
from regrad.errors import AtomDamaged
from regrad.storage import Storage


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
        _check(rows, records)
        yield rows, records


def _runs(storage: Storage, rows: pa.Table, offsets: dict[str, int], record_bytes: int) -> Iterator[np.ndarray]:
    """The records of rows sorted by shard and row, one read for each run of neighbours."""
    places = list(zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True))
    first = 0
    for i in range(1, len(places) + 1):
        if i < len(places) and places[i] == (places[i - 1][0], places[i - 1][1] + 1):
            continue
        shard, row = places[first]
        yield read_rows(storage, shard, offsets[shard], record_bytes, row, i - first)
        first = i


def _check(rows: pa.Table, records: np.ndarray) -> None:
    for passage_id, shard, crc32, record in zip(
        rows["passage_id"].to_pylist(), rows["shard"].to_pylist(), rows["crc32"].to_pylist(), records, strict=True
    ):
        if zlib.crc32(record) != crc32:
            raise AtomDamaged(
                f"the atom of passage {passage_id!r} in shard {shard} is damaged and cannot be copied; nothing was "
                "changed. Add the passage again, or delete it"
            )
