"""What only looks at a bank: `regrad bank info`, `diff` and `verify` (which can also repair)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from regrad.cli.bank import output as show
from regrad.cli.bank.output import check_ids, json_option, uri_argument, version_option
from regrad.cli.options import printable
from regrad.errors import AtomNotFound
from regrad.text import counted, readable_size

if TYPE_CHECKING:
    from regrad.bank.inspect import BankInfo, PassageInfo
    from regrad.bank.verify import Damage

_KINDS = {"gradient": "gradients at MetaInit", "adapter": "trained adapters, fingerprint"}


@click.command("info")
@uri_argument
@version_option("The version to describe")
@click.option("--id", "passage_id", metavar="PASSAGE_ID", help="Show one passage instead.")
@click.option("--quarantine", is_flag=True, help="List the refused passages and the reasons instead.")
@json_option
def info(uri: str, version: int | None, passage_id: str | None, quarantine: bool, as_json: bool) -> None:
    """Show what a bank is, what is on its disk, and whether anything that was deleted is still there.

    With --id: where the passage's atom is, the hash of the text that it was computed from, why it was refused, when
    it was deleted, and which files still contain it.
    """
    from regrad.bank.inspect import info, passage_info, quarantined

    if passage_id is not None:
        check_ids([passage_id])
        found = passage_info(uri, passage_id, version)
        if not (found.shard or found.quarantined or found.forgotten_in or found.remains):
            text = f"version {found.version} of the bank at {uri} knows no passage {passage_id!r}"
            raise AtomNotFound(text, uri=uri, version=found.version, id=passage_id)
        show.print_json(found) if as_json else _show_passage(uri, found)
    elif quarantine:
        refused = quarantined(uri, version)
        if as_json:
            show.print_json([{"id": name, "reason": reason} for name, reason in refused])
            return
        for name, reason in refused:
            click.echo(f"{show.printable_id(name)}\t{printable(reason)}")
        if not refused:
            click.echo("no passage was refused")
    else:
        bank = info(uri, version)
        show.print_json(bank) if as_json else _show_bank(bank)


def _show_bank(bank: BankInfo) -> None:
    others = ", ".join(map(str, bank.versions))
    folders = (f"{name} {readable_size(total)} ({bank.files[name]})" for name, total in bank.bytes.items())
    hint = " (--quarantine lists them)" if bank.quarantined else ""
    rows = [
        ("bank", bank.uri),
        ("version", f"{bank.version} (on disk: {others})"),
        ("atoms", f"{_KINDS[bank.kind]} {bank.fingerprint}, {bank.numbers:,} numbers each"),
        ("codec", f"{bank.codec}, {readable_size(bank.record_bytes)} a record"),
        ("passages", f"{bank.passages:,}, and {bank.quarantined:,} refused{hint}"),
        ("index", f"{counted(bank.parts, 'part')}, {bank.index_bytes_per_passage:.1f} bytes a passage"),
        ("shards", f"{bank.shards:,}"),
        ("on disk", f"{readable_size(sum(bank.bytes.values()))}: {', '.join(folders)}"),
    ]
    if bank.unfinished_blocks:
        rows.append(("unfinished", f"{counted(bank.unfinished_blocks, 'block')} of interrupted builds"))
    show.print_fields(rows)
    if bank.missing_records:
        names = f"{counted(bank.missing_records, 'record')} that passages should have"
        click.echo(f"{names} cannot be there, by the files' sizes: run `{show.command_line('verify', bank.uri)}`.")
    if bank.dead_records:
        dead = f"{counted(bank.dead_records, 'record')} ({readable_size(bank.dead_bytes)})"
        click.echo(f"{dead} of atoms that no passage has are still in shard files: {_ways_to_remove(bank)}")
    else:
        click.echo(f"Every one of the {counted(bank.records_on_disk, 'record')} on disk belongs to a passage.")


def _ways_to_remove(bank: BankInfo) -> str:
    """What to run so that no shard file contains an atom that no passage has."""
    options = " --abandon-builds" * bool(bank.dead_of_builds) + " --grace 0" * bool(bank.dead_of_nobody)
    ways = f"run `{show.command_line('compact', bank.uri)}`, then `{show.command_line('gc', bank.uri)}{options}`."
    if bank.dead_of_builds:
        ways += (
            f"\n--abandon-builds: {counted(bank.dead_of_builds, 'record')} of interrupted builds, which could "
            "resume from them."
        )
    if bank.dead_of_nobody:
        ways += (
            f"\n--grace 0: {counted(bank.dead_of_nobody, 'record')} in files that no version names. Their writer died "
            "or is still running; in the latter case, wait. After an hour they are removed without --grace."
        )
    return ways


def _show_passage(uri: str, passage: PassageInfo) -> None:
    rows = [("passage", show.printable_id(passage.passage_id)), ("version", passage.version)]
    rows.append(("atom", f"row {passage.row} of shards/{passage.shard}" if passage.shard else "none in this version"))
    if passage.shard:
        rows.append(("text hash", passage.text_hash or "the text is not known"))
    if passage.quarantined:
        rows.append(("refused", passage.quarantined))
    if passage.forgotten_in:
        rows.append(("deleted", f"in version {passage.forgotten_in}; no older version returns it"))
    held = ", ".join(f"shards/{shard}" for shard in passage.remains)
    rows.append(("held by", held or "no file that a version names for it"))
    show.print_fields(rows)
    if passage.shard or not passage.forgotten_in:
        return
    # A shard outlives the version that knew its rows, so the bytes of a deleted atom may still be there.
    from regrad.bank.inspect import info

    bank = info(uri)
    if passage.remains:
        click.echo(f"Its bytes are still there: {_ways_to_remove(bank)}")
    elif bank.dead_records:
        click.echo(f"Some shard files contain atoms that no passage has, perhaps this one: {_ways_to_remove(bank)}")
    else:
        click.echo("No shard file contains an atom that no passage has: its bytes are gone.")


@click.command("diff")
@uri_argument
@click.argument("older", type=int)
@click.argument("newer", type=int, required=False)
@json_option
def diff(uri: str, older: int, newer: int | None, as_json: bool) -> None:
    """Compare version OLDER with NEWER (default: the current one); `regrad bank info` lists the versions."""
    from regrad.bank.inspect import diff

    found = diff(uri, older, newer)
    if as_json:
        show.print_json(found)
        return
    click.echo(f"{found.older} -> {found.newer}")
    for name, ids in (("added", found.added), ("removed", found.removed), ("changed", found.changed)):
        click.echo(f"{name:<8} {len(ids):,}{': ' if ids else ''}{show.ids_listed(ids)}")
    click.echo(f"{'moved':<8} {found.moved:,} (the same atoms, elsewhere)")


@click.command("verify")
@uri_argument
@version_option("The version to read")
@click.option("--repair", is_flag=True, help="Rebuild damaged look-up files from their index.")
@click.option("--drop-lost", is_flag=True, help="Commit a version without the lost atoms; a build computes them again.")
@json_option
def verify(uri: str, version: int | None, repair: bool, drop_lost: bool, as_json: bool) -> None:
    """Read every byte of a version, and every manifest, and name every file that has changed since it was written.

    The exit status is 0 if all is good (or is now, with --repair), 1 if something is damaged, 2 if that is unknown. A
    build does not compute an atom again that the bank lists, even if its bytes are lost; after --drop-lost it does.
    """
    if drop_lost and version is not None:
        raise click.UsageError("--drop-lost makes a new version of the current one: it does not go with --version")
    damage = _damage(uri, version, repair)
    left = [item for item in damage if not item.repaired]
    if as_json:
        show.print_json({"damage": [asdict(item) for item in damage]})
    else:
        _show_damage(uri, damage, left)
    if drop_lost:
        from regrad.bank import verify as checks

        manifest = checks.drop_lost(uri, left)
        if manifest is not None:
            text = f"version {manifest.label} is without the lost atoms; build or add computes them again"
            click.echo(text, err=True)
    sys.exit(1 if left else 0)


def _damage(uri: str, version: int | None, repair: bool) -> list[Damage]:
    """Damaged manifests, and if the version's own can be read, the damage of the version."""
    from regrad.bank.verify import damaged_manifests, verify
    from regrad.errors import BankError

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{done:,} of {counted(total, 'shard')}", nl=False, err=True)

    manifests = damaged_manifests(uri)
    try:
        return manifests + verify(uri, version, repair, progress)
    except BankError:
        if not manifests:
            raise
        return manifests
    finally:
        if sys.stderr.isatty():
            click.echo("\r\033[K", nl=False, err=True)


def _show_damage(uri: str, damage: Sequence[Damage], left: Sequence[Damage]) -> None:
    for item in damage:
        click.echo(f"{printable(item.file)}: {printable(item.problem)}")
        if item.passages:
            click.echo(f"  lost: {show.ids_listed(item.passages)}")
    if not left:
        click.echo("all good" if not damage else "all good now")
        return
    lost = {passage_id for item in left for passage_id in item.passages}
    click.echo(f"{counted(len(left), 'damaged file')}, {counted(len(lost), 'lost atom')}")
    for remedy in _remedies(uri, left):
        click.echo(f"- {remedy}")


def _remedies(uri: str, damage: Sequence[Damage]) -> list[str]:
    files = [item.file for item in damage]
    ways = ["Put the files back from a copy of the bank of any age: files never change once they are written."]
    if any(name.startswith("lookup/") for name in files):
        ways.append(f"Look-up files can be rebuilt: `{show.command_line('verify', uri)} --repair`.")
    if any(item.passages for item in damage):
        ways.append(
            f"Lost atoms: `{show.command_line('verify', uri)} --drop-lost`, then compute them again (`regrad bank "
            f"add`, or `regrad build`); or do without (`{show.command_line('delete', uri)} ID...`). --json lists them "
            "all."
        )
    if any(name.startswith(("index/", "shard-lists/", "manifest")) for name in files):
        ways.append(
            "A version without its manifest, index or shard list cannot be repaired: copy an older one to a new bank "
            f"(`{show.command_line('export', uri)} NEW --version N`), or build again."
        )
    return ways
