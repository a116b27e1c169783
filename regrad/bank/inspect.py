"""What is in a bank: its versions, a passage's rows, what was refused, what deletion left behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from regrad.bank.builder import unfinished
from regrad.bank.index import key_of
from regrad.bank.manifest import Manifest, read_manifest, versions
from regrad.bank.schemas import FORGOTTEN, QUARANTINE, SHARDS, read_table
from regrad.bank.shards import FOLDER
from regrad.bank.writer import whole_index
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


@dataclass(frozen=True)
class BankInfo:
    """Counts of a version, and of all files of the bank. Bytes and records are of what is on the disk now.

    `dead_records` are atoms that are still in some shard file although the version in force has no passage for them,
    whichever version is described; 0 means that what was deleted is gone. See `Remains` for the others.
    """

    uri: str
    version: str
    versions: list[int]
    kind: str
    fingerprint: str
    codec: str
    numbers: int
    record_bytes: int
    passages: int
    quarantined: int
    parts: int
    shards: int
    index_bytes_per_passage: float
    files: dict[str, int]
    bytes: dict[str, int]
    records_on_disk: int
    missing_records: int
    dead_records: int
    dead_bytes: int
    dead_of_builds: int
    dead_of_nobody: int
    unfinished_blocks: int


def info(uri: str, version: int | None = None) -> BankInfo:
    """Describe a version (the one in force by default). Reads its whole index, and the listing of all files."""
    storage = Storage(uri)
    manifest = read_manifest(storage, version)
    there = storage.files()
    folders = Counter(name.split("/")[0] for name in there)
    sizes: Counter[str] = Counter()
    for name, (size, _) in there.items():
        sizes[name.split("/")[0]] += size
    left = remains(storage, read_manifest(storage), {name: size for name, (size, _) in there.items()})
    lookup = sum(part.lookup.bytes for part in manifest.parts)
    return BankInfo(
        uri=uri,
        version=manifest.label,
        versions=versions(storage),
        kind=manifest.kind,
        fingerprint=manifest.fingerprint,
        codec=manifest.codec,
        numbers=manifest.size,
        record_bytes=manifest.record_bytes,
        passages=manifest.passages,
        quarantined=manifest.quarantined,
        parts=len(manifest.parts),
        shards=sum(part.shards for part in manifest.parts),
        index_bytes_per_passage=lookup / max(1, manifest.passages),
        files=dict(sorted(folders.items())),
        bytes=dict(sorted(sizes.items())),
        records_on_disk=left.records,
        missing_records=left.missing,
        dead_records=left.dead,
        dead_bytes=left.dead_bytes,
        dead_of_builds=left.of_builds,
        dead_of_nobody=left.of_nobody,
        unfinished_blocks=folders.get("builds", 0),
    )


@dataclass(frozen=True)
class PassageInfo:
    """What a bank knows of one passage.

    `shard` and `row` say where its atom is in the version asked for, `text_hash` is of the text that it was computed
    from. `remains` are shard files that hold an atom of it by some version that is still there, in use or not.
    """

    passage_id: str
    version: str
    shard: str | None
    row: int | None
    text_hash: str | None
    quarantined: str | None
    forgotten_in: int | None
    remains: list[str]


def passage_info(uri: str, passage_id: str, version: int | None = None) -> PassageInfo:
    """Look for one passage everywhere. Reads whole indexes."""
    storage = Storage(uri)
    manifest = read_manifest(storage, version)
    found = _row_of(storage, manifest, passage_id)
    others = [_row_of(storage, read_manifest(storage, number), passage_id) for number in versions(storage)]
    return PassageInfo(
        passage_id=passage_id,
        version=manifest.label,
        shard=found["shard"] if found else None,
        row=found["row"] if found else None,
        text_hash=found["text_hash"].hex() if found and found["text_hash"] else None,
        quarantined=_reason(storage, manifest, passage_id),
        forgotten_in=_forgotten_in(storage, passage_id),
        remains=sorted({row["shard"] for row in others if row}),
    )


def _row_of(storage: Storage, manifest: Manifest, passage_id: str) -> dict[str, Any] | None:
    index, _ = whole_index(storage, manifest)
    rows: list[dict[str, Any]] = index.filter(pc.equal(index["passage_id"], passage_id)).to_pylist()
    return rows[0] if rows else None


def quarantined(uri: str, version: int | None = None) -> list[tuple[str, str]]:
    """Passages without an atom, sorted by id: id and reason."""
    storage = Storage(uri)
    manifest = read_manifest(storage, version)
    if manifest.quarantine is None:
        return []
    refused = read_table(storage, manifest.quarantine, QUARANTINE)
    return list(zip(refused["passage_id"].to_pylist(), refused["reason"].to_pylist(), strict=True))


def _reason(storage: Storage, manifest: Manifest, passage_id: str) -> str | None:
    if manifest.quarantine is None:
        return None
    refused = read_table(storage, manifest.quarantine, QUARANTINE)
    reasons = refused.filter(pc.equal(refused["passage_id"], passage_id))["reason"].to_pylist()
    return "; ".join(reasons) or None


def _forgotten_in(storage: Storage, passage_id: str) -> int | None:
    file = read_manifest(storage).forgotten
    if file is None:
        return None
    found = read_table(storage, file, FORGOTTEN)
    key = int.from_bytes(key_of(passage_id), "big")
    numbers = [row["version"] for row in found.to_pylist() if row["key"] == key]
    return max(numbers, default=None)


@dataclass(frozen=True)
class BankDiff:
    """Passages by id, sorted: only in the newer version, only in the older, in both but of another text or atom."""

    older: str
    newer: str
    added: list[str]
    removed: list[str]
    changed: list[str]
    moved: int


def diff(uri: str, older: int, newer: int | None = None) -> BankDiff:
    """Compare two versions; `moved` counts atoms that are the same but lie elsewhere (after `compact`)."""
    storage = Storage(uri)
    manifests = read_manifest(storage, older), read_manifest(storage, newer)
    a, b = (_rows(storage, manifest) for manifest in manifests)
    both = a.keys() & b.keys()
    changed = sorted(name for name in both if a[name][:2] != b[name][:2])
    return BankDiff(
        older=manifests[0].label,
        newer=manifests[1].label,
        added=sorted(b.keys() - a.keys()),
        removed=sorted(a.keys() - b.keys()),
        changed=changed,
        moved=sum(a[name] != b[name] for name in both) - len(changed),
    )


def _rows(storage: Storage, manifest: Manifest) -> dict[str, tuple[Any, ...]]:
    index, _ = whole_index(storage, manifest)
    columns = (index[name].to_pylist() for name in ("passage_id", "text_hash", "crc32", "shard", "row"))
    return {passage_id: tuple(rest) for passage_id, *rest in zip(*columns, strict=True)}
