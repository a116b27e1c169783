"""Forgetting passages, and removing what nothing needs any more.

Forgetting has two steps. `delete` makes a version in which the passages have no atoms, and from then on no older
version gives them out. `compact` copies what is left out of shards that hold deleted atoms, and `gc` removes the old
versions and those shards: then the bytes are gone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from regrad.bank.catalog import Catalog
from regrad.bank.commit import Change, commit_onto_newest
from regrad.bank.manifest import Manifest
from regrad.bank.reader import BankReader
from regrad.bank.receipts import FOLDER as BUILDS
from regrad.bank.receipts import unfinished
from regrad.bank.rows import QUARANTINE, SHARDS, read_table
from regrad.bank.shards import shard_path
from regrad.bank.versions import manifest_name, read_manifest, versions
from regrad.errors import AtomNotFound, BankError, StorageError
from regrad.storage import Storage

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
