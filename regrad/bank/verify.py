"""Checking a bank: every byte is read, and everything that is not as it was written is reported."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regrad.bank.format import File, Manifest, Part, read_manifest, shard_path, versions
from regrad.bank.index import Catalog, encode_lookup
from regrad.bank.writer import Change, commit, read_part_tables, whole_index
from regrad.errors import BankError, BankFormatError, StorageError
from regrad.storage import Storage


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was written (or was not, and is `repaired`), and the passages whose atoms are lost."""

    file: str
    problem: str
    passages: tuple[str, ...] = ()
    repaired: bool = False


def verify(
    uri: str, version: int | None = None, repair: bool = False, progress: Callable[[int, int], None] = lambda *_: None
) -> list[Damage]:
    """All damage of a version (the current one by default), empty if there is none.

    With `repair`, look-up files are made again from their index. `progress` is called with the number of shards read
    and of all. Raises `BankError` if there is no bank, or its manifest cannot be read, and `StorageError` if the store
    does not answer or refuses: that is no damage.
    """
    storage = Storage(uri)
    manifest = read_manifest(storage, version)
    damage = [found for part in manifest.parts for found in _check_part(storage, part, repair)]
    damage += [found for file in (manifest.quarantine, manifest.forgotten) if file for found in _check(storage, file)]
    if any(item.file.startswith(("index/", "shard-lists/")) for item in damage):
        return damage  # without its index, nothing is known of what shards should hold
    return damage + list(_check_shards(storage, manifest, progress))


def drop_lost(uri: str, damage: Sequence[Damage]) -> Manifest | None:
    """A version without the atoms that `verify` has found lost, so that a build computes them again; None without any.

    They are not forgotten. An atom that was replaced in the meantime stays.
    """
    storage = Storage(uri)
    base = read_manifest(storage)
    lost = {passage_id for item in damage if not item.repaired for passage_id in item.passages}
    catalog = Catalog(storage, base.parts, base.record_bytes)
    shards = {item.file for item in damage}
    still = [name for name in sorted(lost) if (at := catalog.find(name)) and at.path in shards]
    return commit(storage, base.layout, Change(removed=still), base) if still else None


def damaged_manifests(uri: str) -> list[Damage]:
    """Manifests of any version that are damaged; raises `BankFormatError` for one of another version of regrad."""
    storage, damage = Storage(uri), []
    for number in versions(storage):
        try:
            read_manifest(storage, number)
        except BankFormatError:
            raise
        except BankError as error:
            damage.append(Damage(f"manifests/{number:08d}.json", str(error)))
    return damage


def _check_part(storage: Storage, part: Part, repair: bool) -> Iterator[Damage]:
    tables = [*_check(storage, part.index), *_check(storage, part.shard_list)]
    yield from tables
    for found in _check(storage, part.lookup):
        if repair and not tables:
            storage.write(part.lookup.name, encode_lookup(*read_part_tables(storage, part)))
            mended = Damage(found.file, f"{found.problem}; it was made again", repaired=True)
            found = next(_check(storage, part.lookup), mended)
        yield found


def _check(storage: Storage, file: File) -> Iterator[Damage]:
    data = _content(storage, file.name)
    if data is None:
        yield Damage(file.name, "it is missing")
    elif hashlib.sha256(data).hexdigest() != file.sha256:
        yield Damage(file.name, "its checksum does not match")


def _content(storage: Storage, name: str) -> bytes | None:
    """The bytes of a file, None if there is none. A store that does not answer, or refuses, is no proof of damage."""
    try:
        return storage.read(name)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _check_shards(storage: Storage, manifest: Manifest, progress: Callable[[int, int], None]) -> Iterator[Damage]:
    index, shards = whole_index(storage, manifest)
    if len(index) != manifest.passages:
        yield Damage("manifest", f"it says {manifest.passages} passages, its index has {len(index)}")
    ordered = index.take(pc.sort_indices(index["shard"].cast(pa.string())))
    names = ordered["shard"].cast(pa.string()).to_numpy()
    for number, shard in enumerate(shards.to_pylist()):
        first, last = (int(np.searchsorted(names, shard["shard"], side)) for side in ("left", "right"))
        yield from _check_shard(storage, manifest.record_bytes, shard, ordered.slice(first, last - first))
        progress(number + 1, len(shards))


def _check_shard(storage: Storage, record_bytes: int, shard: dict, rows: pa.Table) -> Iterator[Damage]:
    name = shard_path(shard["shard"])
    data = _content(storage, name)
    if data is None:
        yield Damage(name, "it is missing", tuple(rows["passage_id"].to_pylist()))
        return
    bad = []
    columns = (rows[column].to_pylist() for column in ("passage_id", "row", "crc32"))
    for passage_id, row, crc32 in zip(*columns, strict=True):
        start = shard["offset"] + row * record_bytes
        if zlib.crc32(data[start : start + record_bytes]) != crc32:
            bad.append(passage_id)
    if bad or len(data) != shard["bytes"] or hashlib.sha256(data).hexdigest() != shard["sha256"]:
        lost = f"{len(bad)} of its atoms are damaged" if bad else "no atom in use is damaged"
        yield Damage(name, f"its checksum does not match; {lost}", tuple(bad))
