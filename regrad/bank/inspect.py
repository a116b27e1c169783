"""What is in a bank: its versions, one passage's rows, the quarantine list, and what deletion left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow.compute as pc

from regrad.bank.builder import unfinished
from regrad.bank.format import (
    FORGOTTEN,
    QUARANTINE,
    SHARD_FOLDER,
    SHARDS,
    Manifest,
    read_manifest,
    read_table,
    rows_in_use,
    shard_path,
    versions,
)
from regrad.bank.index import key_of
from regrad.bank.writer import whole_index
from regrad.errors import BankError, StorageError
from regrad.storage import Storage, safetensors_header

_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class Remains:
    """Records in all shard files, by what the files' sizes say.

    `dead` are those that no passage of the current version has: 0 means that what was deleted is gone. Of these,
    `of_builds` are in shards that only unfinished builds know, and `unowned` in files that neither a version nor a
    build names. `missing` are records that a passage should have and that are not there.
    """

    records: int
    missing: int
    dead: int
    dead_bytes: int
    of_builds: int
    unowned: int


def remains(storage: Storage, newest: Manifest, there: Mapping[str, int]) -> Remains:
    """What is in the shard files; `there` are the bank's files and their bytes."""
    left = {
        name.removeprefix(f"{SHARD_FOLDER}/"): size
        for name, size in there.items()
        if name.startswith(f"{SHARD_FOLDER}/")
    }
    records = missing = dead = dead_bytes = of_builds = unowned = 0
    # 1. Shards of the current version: rows that passages have, and rows whose passage is gone.
    index, shards = whole_index(storage, newest)
    live = rows_in_use(index)
    for shard in shards.to_pylist():
        size = max(0, left.pop(shard["shard"], 0) - shard["offset"])
        whole = size // newest.record_bytes
        rows = -(-size // newest.record_bytes)  # the last one perhaps in part
        used = sum(row < rows for row in live[shard["shard"]])
        records += rows
        missing += sum(row >= whole for row in live[shard["shard"]])
        dead += rows - used
        dead_bytes += (rows - used) * newest.record_bytes
    # 2. All other shard files are dead as a whole, even if an older version or a build names them.
    old = _known_to_versions(storage)
    built = unfinished(storage)
    for name, size in left.items():
        rows = old.get(name) or built.get(name) or _rows_by_header(storage, name)
        records += rows
        dead += rows
        dead_bytes += size
        if name not in old:
            of_builds += rows if name in built else 0
            unowned += rows if name not in built else 0
    return Remains(records, missing, dead, dead_bytes, of_builds, unowned)


def _known_to_versions(storage: Storage) -> dict[str, int]:
    """The rows of every shard that any version names, except for versions that are damaged."""
    known: dict[str, int] = {}
    for number in versions(storage):
        with suppress(BankError, StorageError):
            for part in read_manifest(storage, number).parts:
                shards = read_table(storage, part.shard_list, SHARDS)
                known.update(zip(shards["shard"].to_pylist(), shards["rows"].to_pylist(), strict=True))
    return known


def _rows_by_header(storage: Storage, name: str) -> int:
    """The rows that a file's own header states; at least one, since its content is unknown."""
    with suppress(ValueError, KeyError, TypeError, StorageError):
        header, _ = safetensors_header(partial(storage.read, shard_path(name)), _HEADER_BYTES)
        return max(1, int(header["atoms"]["shape"][0]))
    return 1


@dataclass(frozen=True)
class BankInfo:
    """Counts of a version, and of all files of the bank. Bytes and records are what is on disk now.

    `dead_records` are atoms that are still in a shard file although the current version has no passage for them,
    whichever version is described; 0 means that what was deleted is gone. See `Remains` for the others.
    """

    uri: str
    version: str
    versions: list[int]
    kind: str
    fingerprint: str
    translator: str | None
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
    """Describe a version (the current one by default). Reads its whole index, and the listing of all files."""
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
        translator=manifest.translator,
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
        dead_of_nobody=left.unowned,
        unfinished_blocks=folders.get("builds", 0),
    )


@dataclass(frozen=True)
class PassageInfo:
    """What a bank knows of one passage.

    `shard` and `row` say where its atom is in the version asked for; `text_hash` is of the text it was computed from.
    `remains` are the shard files with an atom of it in any version that still exists.
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
    """Look for one passage in every version. Reads whole indexes."""
    storage = Storage(uri)
    manifest = read_manifest(storage, version)
    found = _row_of(storage, manifest, passage_id)
    others = [_row_of(storage, read_manifest(storage, number), passage_id) for number in versions(storage)]
    reasons = [reason for name, reason in quarantined(uri, manifest.version) if name == passage_id]
    return PassageInfo(
        passage_id=passage_id,
        version=manifest.label,
        shard=found["shard"] if found else None,
        row=found["row"] if found else None,
        text_hash=found["text_hash"].hex() if found and found["text_hash"] else None,
        quarantined="; ".join(reasons) or None,
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
    """Compare two versions; `moved` counts atoms that are the same but in another place (after `compact`)."""
    storage = Storage(uri)
    first = read_manifest(storage, older)
    second = read_manifest(storage, newer)
    before = _rows(storage, first)
    after = _rows(storage, second)
    both = before.keys() & after.keys()
    changed = sorted(name for name in both if before[name][:2] != after[name][:2])
    return BankDiff(
        older=first.label,
        newer=second.label,
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        changed=changed,
        moved=sum(before[name] != after[name] for name in both) - len(changed),
    )


def _rows(storage: Storage, manifest: Manifest) -> dict[str, tuple[Any, ...]]:
    index, _ = whole_index(storage, manifest)
    columns = (index[name].to_pylist() for name in ("passage_id", "text_hash", "crc32", "shard", "row"))
    return {passage_id: tuple(rest) for passage_id, *rest in zip(*columns, strict=True)}
