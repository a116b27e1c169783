"""Maintenance: deleting passages, compacting small files, and removing what no version uses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import torch

from regrad.bank.builder import FOLDER as BUILDS
from regrad.bank.builder import unfinished
from regrad.bank.index import Catalog
from regrad.bank.manifest import Manifest, manifest_name, read_manifest, versions
from regrad.bank.reader import BankReader
from regrad.bank.schemas import QUARANTINE, SHARDS, merged, read_table, rows_in_use
from regrad.bank.shards import ShardInfo, checked_records, shard_path, shard_table, write_shard
from regrad.bank.writer import Change, commit_onto_newest, index_rows, publish_parts, whole_index, write_part
from regrad.errors import AtomNotFound, BankError, StorageError
from regrad.storage import Storage

SHARD_BYTES = 64 * 1024 * 1024
_SMALL = 0.5


def compact(uri: str, shard_bytes: int = SHARD_BYTES) -> Manifest:
    """A version with the same atoms in one part, without a byte of deleted ones in its shards; the same if it has none.

    The former versions and their files stay until `gc`. Raises `BankConflict` if somebody commits meanwhile and
    `AtomDamaged` for an atom that cannot be copied.
    """
    storage = Storage(uri)
    base = read_manifest(storage)
    if not base.parts:
        return base
    index, shards = whole_index(storage, base)
    old = _to_rewrite(index, shards, shard_bytes)
    if not old and len(base.parts) == 1:
        return base
    moving = index.filter(pc.is_in(index["shard"].cast(pa.string()), pa.array(sorted(old), pa.string())))
    staying = index.filter(pc.invert(pc.is_in(index["shard"].cast(pa.string()), pa.array(sorted(old), pa.string()))))
    copies, infos = _copy(storage, base, moving, shards, max(1, shard_bytes // base.record_bytes))
    everything = merged([staying, *copies], drop_deleted=True)
    part = write_part(storage, everything, pa.concat_tables([shards, shard_table(infos)]))
    parts = (part,) if len(everything) else ()
    return publish_parts(storage, base.layout, base, parts, len(everything), Change(shards=shard_table(infos)))


def _to_rewrite(index: pa.Table, shards: pa.Table, shard_bytes: int) -> set[str]:
    """Shards that hold atoms which no passage has any more, and small ones if there is more than one of them."""
    live = rows_in_use(index)
    listed = list(zip(*(shards[name].to_pylist() for name in ("shard", "rows", "bytes")), strict=True))
    holed = {shard for shard, rows, _ in listed if live[shard] < rows}
    small = {shard for shard, _, size in listed if size < _SMALL * shard_bytes}
    return holed | (small if len(small) > 1 else set())


def _copy(
    storage: Storage, base: Manifest, moving: pa.Table, shards: pa.Table, rows_per_shard: int
) -> tuple[list[pa.Table], list[ShardInfo]]:
    """Write the records of an index into new shards; the new index and the shards."""
    tables, infos = [], []
    for rows, records in checked_records(storage, base.record_bytes, moving, shards, rows_per_shard):
        info, crcs = write_shard(storage, torch.from_numpy(records))
        hashes = [value.hex() if value else "" for value in rows["text_hash"].to_pylist()]
        tables.append(index_rows(rows["passage_id"].to_pylist(), hashes, info, crcs))
        infos.append(info)
    return tables, infos


_OURS = ("index/", "shard-lists/", "lookup/", "quarantine/", "forgotten/", "shards/", "builds/", "manifests/")
_HOUR = 3600.0


@dataclass(frozen=True)
class Removed:
    """What `gc` has removed, or would remove."""

    versions: tuple[int, ...]
    files: tuple[str, ...]
    bytes: int


def delete(uri: str, passage_ids: Sequence[str]) -> Manifest:
    """Forget passages: a version without them, and no older version gives them out any more.

    They may also be on the quarantine list, or in older versions only. Raises `AtomNotFound` naming an id that is
    nowhere, or is forgotten already; nothing is deleted then.
    """
    storage = Storage(uri)
    manifest = read_manifest(storage)
    unknown = _unknown(storage, manifest, sorted(set(passage_ids)))
    if unknown:
        raise AtomNotFound(
            f"the bank at {uri} has no atom for {unknown[:5]}; nothing was deleted (`regrad bank info URI --id ID` "
            "says whether it was before)"
        )
    change = Change(removed=sorted(set(passage_ids)), forget=True)
    return commit_onto_newest(storage, manifest.layout, change)


def _unknown(storage: Storage, newest: Manifest, passage_ids: Sequence[str]) -> list[str]:
    """Those that neither the newest version nor its quarantine list has, nor an older one that would give them out."""
    catalog = Catalog(storage, newest.parts, newest.record_bytes)
    left = [passage_id for passage_id in passage_ids if catalog.find(passage_id) is None]
    if left and newest.quarantine:
        refused = set(read_table(storage, newest.quarantine, QUARANTINE)["passage_id"].to_pylist())
        left = [passage_id for passage_id in left if passage_id not in refused]
    for number in reversed(versions(storage)):
        if left and number != newest.version:
            with suppress(BankError, StorageError), BankReader(storage.uri, version=number) as reader:
                left = [passage_id for passage_id in left if passage_id not in reader]
    return left


def gc(uri: str, keep: int = 1, grace_seconds: float = _HOUR, abandon: bool = False, dry_run: bool = False) -> Removed:
    """Remove versions but the newest `keep`, and the files that only they needed.

    Files that no version names (of a writer that died, or is at work now) are removed when they are older than the
    grace. What unfinished builds have done is kept for them; if it is to be abandoned, it goes now. Files that are not
    a bank's are left alone.
    """
    if keep < 1:
        raise BankError("at least one version has to be kept; to remove a bank, remove its directory")
    storage = Storage(uri)
    read_manifest(storage)
    numbers = versions(storage)
    old, kept = numbers[:-keep], numbers[-keep:]
    needed, builds = _files_of(storage, kept), _files_of_builds(storage)
    needed |= set() if abandon else builds
    obsolete = (_files_known_of(storage, old) | builds) - needed
    newest = time.time() - grace_seconds
    there = {name: found for name, found in storage.files().items() if name.startswith(_OURS) or name.endswith(".tmp")}
    stray = {name for name, (_, written) in there.items() if name not in needed and written < newest}
    gone = sorted((obsolete | stray) & there.keys())
    if not dry_run:
        _remove(storage, gone)
    return Removed(tuple(old), tuple(gone), sum(there[name][0] for name in gone))


def _remove(storage: Storage, names: Sequence[str]) -> None:
    """Manifests first: a version whose files are going must not be opened."""
    for name in sorted(names, key=lambda name: not name.startswith("manifests/")):
        storage.remove_file(name)


def _files_known_of(storage: Storage, numbers: Sequence[int]) -> set[str]:
    """The files of versions that are to go. What else a damaged one needed goes as files do that no version names."""
    found: set[str] = set()
    for number in numbers:
        found.add(manifest_name(number))
        with suppress(BankError, StorageError):
            found |= _files_of(storage, [number])
    return found


def _files_of(storage: Storage, numbers: Sequence[int]) -> set[str]:
    """Every file that these versions need; raises `BankError` if they cannot say."""
    found: set[str] = set()
    for number in numbers:
        manifest = read_manifest(storage, number)
        found |= {manifest_name(number), *(file.name for file in manifest.files)}
        for part in manifest.parts:
            shards = read_table(storage, part.shard_list, SHARDS)["shard"].to_pylist()
            found |= {shard_path(shard) for shard in shards}
    return found


def _files_of_builds(storage: Storage) -> set[str]:
    """Receipts, and the shards that they name."""
    receipts = {f"{BUILDS}/{name}" for name in storage.list(BUILDS)}
    return receipts | {shard_path(shard) for shard in unfinished(storage)}
