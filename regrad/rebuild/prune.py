"""Removing old versions, and what nothing else needs of their parts, their runs and the versions of their banks.

What goes is written to `pruning.json` before anything is removed, and a version's own file is the first of it to go: so
there are whole versions only, whenever this is killed, and the next prune, rebuild or roll back goes on with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, ValidationError

from regrad.bank.maintenance import gc
from regrad.errors import RebuildError
from regrad.rebuild.config import BANK
from regrad.rebuild.inputs import size_of
from regrad.rebuild.records import Records, RunRecord
from regrad.rebuild.steps import alone
from regrad.rebuild.versions import OWN, PRUNING, Version, Versions, absolute
from regrad.settings import Settings
from regrad.storage import Storage
from regrad.text import counted, readable_size

_BANK = BANK.removeprefix(OWN)


@dataclass(frozen=True)
class InUse:
    """What servers answer from or may go back to: locations, and pairs of a bank's location and a version of it."""

    locations: Collection[str] = ()
    banks: Collection[tuple[str, int]] = ()


class Pruning(Settings):
    """What goes: versions, run records, places below the output, and of banks that stay some of their versions."""

    versions: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    banks: dict[str, tuple[int, ...]] = Field({})


@dataclass(frozen=True)
class Pruned:
    """What a prune has removed, or would remove, and why the other versions are kept, by their ids."""

    gone: Pruning
    bytes: int
    kept: Mapping[str, str]


@dataclass
class _Kept:
    """Why versions are kept, and what stays: keys of parts, places, and versions of banks (by place)."""

    reasons: dict[str, str] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)
    banks: set[tuple[str, int]] = field(default_factory=set)


def prune(output: Storage, keep: int, in_use: AbstractContextManager[InUse], dry_run: bool = False) -> Pruned:
    """Remove all versions but the newest `keep`, the current one, the one before it, and those that servers use.

    Parts that an unfinished rebuild has begun or goes on from stay. `in_use` is entered until it is done. Raises
    `RebuildError` while a rebuild is at work, and for a damaged file, before anything is removed.
    """
    with alone(output), in_use as used:
        if not dry_run:
            finish(output)
        found = _found(output, keep, used)
        if not dry_run and found.gone != Pruning():
            output.write(PRUNING, found.gone.model_dump_json(indent=1).encode())
            finish(output)
    return found


def finish(output: Storage) -> None:
    """Do what is left of a prune that was begun. Call it `alone`."""
    if not output.exists(PRUNING):
        return
    uri = f"{output.uri}/{PRUNING}"
    try:
        gone = Pruning.model_validate_json(output.read(PRUNING))
    except ValidationError as error:
        text = f"{uri} is damaged, which says what an interrupted prune was to remove; remove it, and prune again"
        raise RebuildError(text, code="version_damaged", uri=uri) from error
    # A version goes before its parts, and the run of a step before what it has made: what is there can be relied on.
    versions, records = Versions(output), Records(output)
    for name in gone.versions:
        versions.remove(name)
    for name in gone.records:
        records.remove(name)
    for place, numbers in gone.banks.items():
        if output.exists(place):
            gc(f"{output.uri}/{place}", only=numbers)
    for place in gone.places:
        _remove_place(output, place)
    output.remove_file(PRUNING)


def _remove_place(output: Storage, place: str) -> None:
    """The place, and what jobs keep beside it (`PLACE.preparation`, `PLACE.logs`)."""
    folder, _, name = place.rpartition("/")
    beside = Storage(f"{output.uri}/{folder}")
    for found in beside.list():
        if found == name or found.startswith(f"{name}."):
            Storage(f"{beside.uri}/{found}").remove()


def _found(output: Storage, keep: int, used: InUse) -> Pruned:
    versions = Versions(output)
    everything = [versions.read(name) for name in versions.ids()]
    runs = Records(output)
    records = list(runs.all())
    kept = _kept(output, everything, keep, used, records)
    old = [version for version in everything if version.id not in kept.reasons]
    # 1. Of the old versions' parts those that nothing else has; of a bank that stays, the version.
    keys, places, banks = set[str](), set[str](), dict[str, set[int]]()
    for version in old:
        for name, key, place in _parts(version):
            if key in kept.keys:
                continue
            keys.add(key)
            if place not in kept.places and absolute(place, output) != place:
                places.add(place)
            elif name == _BANK and (place, version.bank_version) not in kept.banks:
                banks.setdefault(place, set()).add(version.bank_version)
    # 2. The runs that made these parts or read them, and what they have made: evaluations.
    names = {version.id for version in old}
    of_them = [record for record in records if record.facts.get("version") in names or keys & _keys_of(record)]
    places |= {made.place for record in of_them for made in record.outputs} - kept.places
    # 3. What it comes to. A bank that cannot be read is found here.
    freed = 0
    for place, numbers in banks.items():
        freed += gc(f"{output.uri}/{place}", only=numbers, dry_run=True).bytes
    freed += sum(size_of(f"{output.uri}/{place}") for place in places)
    gone = Pruning(
        versions=tuple(sorted(names)),
        records=tuple(sorted(map(runs.name_of, of_them))),
        places=tuple(sorted(places)),
        banks={place: tuple(sorted(numbers)) for place, numbers in sorted(banks.items())},
    )
    return Pruned(gone, freed, kept.reasons)


def _kept(
    output: Storage, everything: Sequence[Version], keep: int, used: InUse, records: Sequence[RunRecord]
) -> _Kept:
    current = Versions(output).current()
    in_force, before = (current.version, current.previous) if current else (None, None)
    kept = _Kept()
    for version in everything:
        if version.id == in_force:
            kept.reasons[version.id] = "current"
        elif version.id == before:
            kept.reasons[version.id] = "before it"
        elif _serves(version, output, used):
            kept.reasons[version.id] = "servers use it"
        elif version in everything[-keep:]:
            kept.reasons[version.id] = "new"
    # A rebuild that was killed goes on from what its unfinished step reads.
    begun = {key for record in records if record.ended is None for key in _keys_of(record)}
    for version in everything:
        bank = version.places[_BANK]
        is_kept = version.id in kept.reasons
        for name, key, place in _parts(version):
            if is_kept or key in begun:
                kept.keys.add(key)
            if is_kept or key in begun or _is_among(absolute(place, output), used.locations):
                kept.places.add(place)
            if name == _BANK and (is_kept or key in begun):
                kept.banks.add((bank, version.bank_version))
    return kept


def _serves(version: Version, output: Storage, used: InUse) -> bool:
    places = version.places_in(output)
    pinned = any(number == version.bank_version and _same(uri, places[_BANK]) for uri, number in used.banks)
    return pinned or any(_is_among(places[name], used.locations) for name in version.searched)


def _parts(version: Version) -> Iterator[tuple[str, str, str]]:
    """Name, key and place of each part."""
    for name, place in version.places.items():
        yield name, version.keys[name], place


def _keys_of(record: RunRecord) -> set[str]:
    """The keys of what a run makes and of what it reads, which its settings name `NAME:KEY`; among other texts."""
    return {record.key, *(text.rpartition(":")[2] for text in _texts(record.settings))}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _is_among(place: str, locations: Collection[str]) -> bool:
    return any(_same(place, one) for one in locations)


def _same(first: str, second: str) -> bool:
    """Whether two locations are one, however they are written."""
    if first.rstrip("/") == second.rstrip("/"):
        return True
    one, other = Storage(first), Storage(second)
    return type(one.fs) is type(other.fs) and one.root.rstrip("/") == other.root.rstrip("/")


def described(found: Pruned, dry_run: bool) -> str:
    """In lines for people: what goes, and why the rest stays."""
    gone, verb = found.gone, "would remove" if dry_run else "removed"
    lines = [f"{name}  kept: {reason}" for name, reason in sorted(found.kept.items())]
    lines += [f"{name}  {'would go' if dry_run else 'gone'}" for name in gone.versions]
    if gone == Pruning():
        return "\n".join([*lines, "nothing to remove"])
    lines += [f"  {place}" for place in gone.places]
    lines += [f"  {place}, version {number}" for place, numbers in gone.banks.items() for number in numbers]
    what = f"{counted(len(gone.versions), 'version')} and {counted(len(gone.records), 'run record')}"
    return "\n".join([*lines, f"{verb} {what}, {readable_size(found.bytes)}"])
