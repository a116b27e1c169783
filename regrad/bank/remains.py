"""Which atoms are still in shard files although the version in force has no passage for them, and whose they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from regrad.bank.compact import whole_index
from regrad.bank.manifest import Manifest
from regrad.bank.receipts import unfinished
from regrad.bank.rows import SHARDS, read_table
from regrad.bank.shards import FOLDER
from regrad.bank.versions import read_manifest, versions
from regrad.errors import BankError, StorageError
from regrad.storage import Storage

_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class Remains:
    """Records in all shard files, by what the files' sizes say.

    `dead` are those that no passage of the version in force has: 0 means that what was deleted is gone. Of these,
    `of_builds` lie in shards that only unfinished builds know, and `of_nobody` in files that neither a version nor a
    build names. `missing` are records that a passage should have and that are not there.
    """

    records: int
    missing: int
    dead: int
    dead_bytes: int
    of_builds: int
    of_nobody: int


def remains(storage: Storage, newest: Manifest, there: Mapping[str, int]) -> Remains:
    """What is in the shard files; `there` are the bank's files and their bytes."""
    found = {name.removeprefix(f"{FOLDER}/"): size for name, size in there.items() if name.startswith(f"{FOLDER}/")}
    index, shards = whole_index(storage, newest)
    live = _live_rows(index)
    records = missing = of_builds = of_nobody = dead = dead_bytes = 0
    for shard in shards.to_pylist():
        size = max(0, found.pop(shard["shard"], 0) - shard["offset"])
        whole, rows = size // newest.record_bytes, -(-size // newest.record_bytes)  # the last one perhaps in part
        used = sum(row < rows for row in live[shard["shard"]])
        records, missing = records + rows, missing + sum(row >= whole for row in live[shard["shard"]])
        dead, dead_bytes = dead + rows - used, dead_bytes + (rows - used) * newest.record_bytes
    old, built = _known_to_versions(storage), unfinished(storage)
    for name, size in found.items():
        rows = old.get(name) or built.get(name) or _rows_by_header(storage, name, size)
        records, dead, dead_bytes = records + rows, dead + rows, dead_bytes + size
        of_builds += rows if name not in old and name in built else 0
        of_nobody += rows if name not in old and name not in built else 0
    return Remains(records, missing, dead, dead_bytes, of_builds, of_nobody)


def _live_rows(index: pa.Table) -> dict[str, list[int]]:
    """The rows of each shard that passages have. Two passages of the same atom may share a row: it counts once."""
    places = pa.table({"shard": index["shard"].cast(pa.string()), "row": index["row"]})
    rows = places.group_by("shard", use_threads=False).aggregate([("row", "distinct")])
    return dict(zip(rows["shard"].to_pylist(), rows["row_distinct"].to_pylist(), strict=True))


def _known_to_versions(storage: Storage) -> dict[str, int]:
    """The rows of every shard that some version names. Of a damaged version nothing is known."""
    known: dict[str, int] = {}
    for number in versions(storage):
        with suppress(BankError, StorageError):
            for part in read_manifest(storage, number).parts:
                shards = read_table(storage, part.shard_list, SHARDS)
                known.update(zip(shards["shard"].to_pylist(), shards["rows"].to_pylist(), strict=True))
    return known


def _rows_by_header(storage: Storage, name: str, size: int) -> int:
    """What a file's own header says; one record at least, since nobody knows what is in it."""
    with suppress(ValueError, KeyError, TypeError, StorageError):
        data = storage.read(f"{FOLDER}/{name}", 0, min(size, _HEADER_BYTES))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return max(1, int(header["atoms"]["shape"][0]))
    return 1
