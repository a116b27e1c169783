"""What a bank is, what is still on its disk, and how two versions differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from regrad.bank.compact import whole_index
from regrad.bank.lookup import key_of
from regrad.bank.manifest import Manifest
from regrad.bank.remains import remains
from regrad.bank.rows import FORGOTTEN, QUARANTINE, read_table
from regrad.bank.versions import read_manifest, versions
from regrad.storage import Storage


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
