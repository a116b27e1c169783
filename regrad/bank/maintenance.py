"""Maintenance: deleting passages, compacting small files, and removing files that no version uses."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import torch

from regrad.bank.builder import BUILDS, unfinished
from regrad.bank.format import (
    QUARANTINE,
    SHARDS,
    Manifest,
    manifest_name,
    merged,
    read_manifest,
    read_table,
    rows_in_use,
    shard_path,
    versions,
)
from regrad.bank.index import Catalog
from regrad.bank.reader import BankReader
from regrad.bank.shards import ShardInfo, checked_records, shard_table, write_shard
from regrad.bank.writer import Change, commit_onto_newest, index_rows, publish_parts, whole_index, write_part
from regrad.errors import AtomNotFound, BankError, StorageError
from regrad.storage import Storage

SHARD_BYTES = 64 * 1024 * 1024
_SMALL = 0.5
_OURS = ("index/", "shard-lists/", "lookup/", "quarantine/", "forgotten/", "shards/", "builds/", "manifests/")
_HOUR = 3600.0


def compact(uri: str, shard_bytes: int = SHARD_BYTES) -> Manifest:
    """A version with the same atoms in one part and no deleted atom in its shards; the same version if that is so now.

    The former versions and their files stay until `gc`. Raises `BankConflict` if another writer commits meanwhile and
    `AtomDamaged` for an atom that cannot be copied.
    """
    storage = Storage(uri)
    base = read_manifest(storage)
    if not base.parts:
        return base
    # 1. Shards to rewrite: those with atoms that no passage has, and small ones if there is more than one of them.
    index, shards = whole_index(storage, base)
    live = rows_in_use(index)
    listed = list(zip(*(shards[name].to_pylist() for name in ("shard", "rows", "bytes")), strict=True))
    rewrite = {shard for shard, rows, _ in listed if len(live[shard]) < rows}
    small = {shard for shard, _, size in listed if size < _SMALL * shard_bytes}
    rewrite |= small if len(small) > 1 else set()
    if not rewrite and len(base.parts) == 1:
        return base
    # 2. Their live records go into new shards, checked on the way; all other shards stay as they are.
    moves = pc.is_in(index["shard"].cast(pa.string()), pa.array(sorted(rewrite), pa.string()))
    tables = [index.filter(pc.invert(moves))]
    written: list[ShardInfo] = []
    rows_per_shard = max(1, shard_bytes // base.record_bytes)
    for rows, records in checked_records(storage, base.record_bytes, index.filter(moves), shards, rows_per_shard):
        shard, crcs = write_shard(storage, torch.from_numpy(records))
        hashes = [value.hex() if value else "" for value in rows["text_hash"].to_pylist()]
        tables.append(index_rows(rows["passage_id"].to_pylist(), hashes, shard, crcs))
        written.append(shard)
    # 3. One part with all of it.
    everything = merged(tables, drop_deleted=True)
    part = write_part(storage, everything, pa.concat_tables([shards, shard_table(written)]))
    parts = (part,) if len(everything) else ()
    return publish_parts(storage, base.layout, base, parts, len(everything), Change(shards=shard_table(written)))


@dataclass(frozen=True)
class Removed:
    """What `gc` has removed, or would remove."""

    versions: tuple[int, ...]
    files: tuple[str, ...]
    bytes: int


def delete(uri: str, passage_ids: Sequence[str]) -> Manifest:
    """Forget passages: a version without them; from then on older versions do not give them out either.

    They may also be on the quarantine list, or in older versions only. Raises `AtomNotFound` naming ids that are
    nowhere, or already forgotten; nothing is deleted then.
    """
    storage = Storage(uri)
    manifest = read_manifest(storage)
    wanted = sorted(set(passage_ids))
    unknown = _unknown(storage, manifest, wanted)
    if unknown:
        raise AtomNotFound(
            f"the bank at {uri} has no atom for {unknown[:5]}; nothing was deleted (`regrad bank info URI --id ID` "
            "says whether it was deleted before)",
            passage_ids=unknown,
        )
    return commit_onto_newest(storage, manifest.layout, Change(removed=wanted, forget=True))


def unknown_ids(uri: str, passage_ids: Sequence[str]) -> list[str]:
    """Those that `delete` would not know."""
    storage = Storage(uri)
    return _unknown(storage, read_manifest(storage), sorted(set(passage_ids)))


def _unknown(storage: Storage, newest: Manifest, passage_ids: Sequence[str]) -> list[str]:
    """Ids that are neither in the newest version nor on its quarantine list, and that no older version would read."""
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


def gc(
    uri: str,
    keep: int = 1,
    grace_seconds: float = _HOUR,
    abandon: bool = False,
    dry_run: bool = False,
    only: Collection[int] | None = None,
) -> Removed:
    """Remove all versions except the newest `keep`, or `only` some of these, and the files that only they needed.

    Files that no version names (of a writer that died, or is at work now) are removed when they are older than the
    grace. What unfinished builds have done is kept for them, unless they are abandoned: then it goes now. Files that
    are not a bank's are left alone.
    """
    if keep < 1:
        raise BankError(
            "at least one version has to be kept; to remove a bank, remove its directory", code="keeps_no_version"
        )
    storage = Storage(uri)
    read_manifest(storage)  # there must be a bank
    numbers = versions(storage)
    old = [number for number in numbers[:-keep] if only is None or number in only]
    # 1. What must stay: whatever the kept versions need, and what builds need to continue. A kept version that cannot
    # be read raises here, before anything is removed.
    needed: set[str] = set()
    for number in sorted(set(numbers) - set(old)):
        needed |= _files_of(storage, number)
    builds = {f"{BUILDS}/{name}" for name in storage.list(BUILDS)}
    builds |= {shard_path(shard) for shard in unfinished(storage)}
    if not abandon:
        needed |= builds
    # 2. What goes at once: the old versions. If one is damaged, its other files go as files do that no version names.
    obsolete = builds | {manifest_name(number) for number in old}
    for number in old:
        with suppress(BankError, StorageError):
            obsolete |= _files_of(storage, number)
    # 3. What goes after the grace: files of a bank that nothing names. A writer may be about to commit younger ones.
    oldest_kept = time.time() - grace_seconds
    there = {name: found for name, found in storage.files().items() if name.startswith(_OURS) or name.endswith(".tmp")}
    stray = {name for name, (_, written) in there.items() if written < oldest_kept}
    gone = sorted(((obsolete | stray) - needed) & there.keys())
    # Manifests first: a version whose files are going must not be opened.
    for name in sorted(gone, key=lambda name: not name.startswith("manifests/")):
        if not dry_run:
            storage.remove_file(name)
    return Removed(tuple(old), tuple(gone), sum(there[name][0] for name in gone))


def _files_of(storage: Storage, version: int) -> set[str]:
    """Every file that a version needs; raises `BankError` if its manifest or a shard list is damaged."""
    manifest = read_manifest(storage, version)
    found = {manifest_name(version), *(file.name for file in manifest.files)}
    for part in manifest.parts:
        found |= {shard_path(shard) for shard in read_table(storage, part.shard_list, SHARDS)["shard"].to_pylist()}
    return found
