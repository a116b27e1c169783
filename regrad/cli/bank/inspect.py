"""`regrad bank info` and `diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from regrad.cli.bank import output as show
from regrad.cli.bank.output import check_ids, json_option, uri_argument, version_option
from regrad.cli.options import printable
from regrad.errors import AtomNotFound
from regrad.text import counted

if TYPE_CHECKING:
    from regrad.bank.inspect import BankInfo, PassageInfo


@click.command("info")
@uri_argument
@version_option("The version to describe")
@click.option("--id", "passage_id", metavar="PASSAGE_ID", help="Look for one passage instead.")
@click.option("--quarantine", is_flag=True, help="List the passages that were refused, and why, instead.")
@json_option
def info(uri: str, version: int | None, passage_id: str | None, quarantine: bool, as_json: bool) -> None:
    """Say what a bank is, what is on its disk, and whether anything that was deleted is still there.

    With --id: where the passage's atom lies, the hash of the text that it was computed from, why it was refused, when
    it was deleted, and which files still hold it.
    """
    from regrad.bank.inspect import info, passage_info, quarantined

    if passage_id is not None:
        check_ids([passage_id])
        found = passage_info(uri, passage_id, version)
        _refuse_unknown(uri, found)
        show.as_json(found) if as_json else _show_passage(uri, found)
    elif quarantine:
        refused = quarantined(uri, version)
        show.as_json([{"id": name, "reason": reason} for name, reason in refused]) if as_json else _show_quarantine(
            refused
        )
    else:
        bank = info(uri, version)
        show.as_json(bank) if as_json else _show_bank(bank)


def _show_bank(bank: BankInfo) -> None:
    others = ", ".join(map(str, bank.versions))
    folders = (f"{name} {show.size(total)} ({bank.files[name]})" for name, total in bank.bytes.items())
    rows = [
        ("bank", bank.uri),
        ("version", f"{bank.version} (on disk: {others})"),
        ("atoms", f"{_KINDS[bank.kind]} {bank.fingerprint}, {bank.numbers:,} numbers each"),
        ("codec", f"{bank.codec}, {show.size(bank.record_bytes)} a record"),
        ("passages", f"{bank.passages:,}, and {bank.quarantined:,} refused{_HINT if bank.quarantined else ''}"),
        ("index", f"{counted(bank.parts, 'part')}, {bank.index_bytes_per_passage:.1f} bytes a passage"),
        ("shards", f"{bank.shards:,}"),
        ("on disk", f"{show.size(sum(bank.bytes.values()))}: {', '.join(folders)}"),
    ]
    if bank.unfinished_blocks:
        rows.append(("unfinished", f"{counted(bank.unfinished_blocks, 'block')} of builds that did not end"))
    show.fields(rows)
    click.echo(_about_forgetting(bank))


_KINDS = {"gradient": "gradients at MetaInit", "adapter": "trained adapters, fingerprint"}
_HINT = " (--quarantine lists them)"


def _about_forgetting(bank: BankInfo) -> str:
    lost = ""
    if bank.missing_records:
        names = f"{counted(bank.missing_records, 'record')} that passages should have"
        lost = f"{names} cannot be there, by the files' sizes: run `{show.verb('verify', bank.uri)}`.\n"
    if not bank.dead_records:
        return f"{lost}Every one of the {counted(bank.records_on_disk, 'record')} on disk belongs to a passage."
    return (
        f"{lost}{counted(bank.dead_records, 'record')} ({show.size(bank.dead_bytes)}) of atoms that no passage "
        f"has are still in shard files: {_ways_to_remove(bank)}"
    )


def _ways_to_remove(bank: BankInfo) -> str:
    """What to run so that no shard file holds an atom that no passage has."""
    options = " --abandon-builds" * bool(bank.dead_of_builds) + " --grace 0" * bool(bank.dead_of_nobody)
    ways = f"run `{show.verb('compact', bank.uri)}`, then `{show.verb('gc', bank.uri)}{options}`."
    if bank.dead_of_builds:
        ways += (
            f"\n--abandon-builds: {counted(bank.dead_of_builds, 'record')} of builds that did not end, which "
            "could go on from them."
        )
    if bank.dead_of_nobody:
        ways += (
            f"\n--grace 0: {counted(bank.dead_of_nobody, 'record')} in files that nothing names, of a writer that "
            "died, or is at work now: wait for it. After an hour they go without it."
        )
    return ways


def _refuse_unknown(uri: str, passage: PassageInfo) -> None:
    if not (passage.shard or passage.quarantined or passage.forgotten_in or passage.remains):
        raise AtomNotFound(f"version {passage.version} of the bank at {uri} knows no passage {passage.passage_id!r}")


def _show_passage(uri: str, passage: PassageInfo) -> None:
    rows = [("passage", show.shown(passage.passage_id)), ("version", passage.version)]
    rows.append(("atom", f"row {passage.row} of shards/{passage.shard}" if passage.shard else "none in this version"))
    if passage.shard:
        rows.append(("text hash", passage.text_hash or "the text is not known"))
    if passage.quarantined:
        rows.append(("refused", passage.quarantined))
    if passage.forgotten_in:
        rows.append(("deleted", f"in version {passage.forgotten_in}; no older version gives it out"))
    held = ", ".join(f"shards/{shard}" for shard in passage.remains)
    rows.append(("held by", held or "no file that a version names for it"))
    show.fields(rows)
    if not passage.shard and passage.forgotten_in:
        click.echo(_what_is_left(uri, bool(passage.remains)))


def _what_is_left(uri: str, named: bool) -> str:
    """Whether a deleted atom's bytes may still be somewhere: a shard outlives the version that knew its rows."""
    from regrad.bank.inspect import info

    bank = info(uri)
    if named:
        return f"Its bytes are still there: {_ways_to_remove(bank)}"
    if bank.dead_records:
        return f"Some shard files hold atoms that no passage has any more, perhaps this one: {_ways_to_remove(bank)}"
    return "No shard file holds an atom that no passage has: its bytes are gone."


def _show_quarantine(refused: list[tuple[str, str]]) -> None:
    for passage_id, reason in refused:
        click.echo(f"{show.shown(passage_id)}\t{printable(reason)}")
    if not refused:
        click.echo("no passage was refused")


@click.command("diff")
@uri_argument
@click.argument("older", type=int)
@click.argument("newer", type=int, required=False)
@json_option
def diff(uri: str, older: int, newer: int | None, as_json: bool) -> None:
    """Compare version OLDER with NEWER (default: the one in force); `regrad bank info` lists the versions."""
    from regrad.bank.inspect import diff

    found = diff(uri, older, newer)
    if as_json:
        show.as_json(found)
        return
    click.echo(f"{found.older} -> {found.newer}")
    for name, ids in (("added", found.added), ("removed", found.removed), ("changed", found.changed)):
        click.echo(f"{name:<8} {len(ids):,}{': ' if ids else ''}{show.ids_listed(ids)}")
    click.echo(f"{'moved':<8} {found.moved:,} (the same atoms, elsewhere)")
