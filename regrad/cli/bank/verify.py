"""`regrad bank verify`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from regrad.cli.bank import output as show
from regrad.cli.bank.output import json_option, uri_argument, version_option
from regrad.cli.options import printable
from regrad.text import counted

if TYPE_CHECKING:
    from regrad.bank.verify import Damage


@click.command("verify")
@uri_argument
@version_option("The version to read")
@click.option("--repair", is_flag=True, help="Make damaged look-up files anew from their index.")
@click.option("--drop-lost", is_flag=True, help="Commit a version without lost atoms, for a build to compute them.")
@json_option
def verify(uri: str, version: int | None, repair: bool, drop_lost: bool, as_json: bool) -> None:
    """Read every byte of a version, and every manifest, and name what is not as it was written.

    Exit status 0 if all is good (or is now, with --repair), 1 if something is damaged, 2 if it could not be found out.
    An atom that was computed from a text keeps a build from computing it again, lost or not: --drop-lost ends that.
    """
    if drop_lost and version is not None:
        raise click.UsageError("--drop-lost makes a new version of the one in force: it does not go with --version")
    damage = _damage(uri, version, repair)
    left = [item for item in damage if not item.repaired]
    if as_json:
        show.as_json({"damage": [asdict(item) for item in damage]})
    else:
        _show(uri, damage, left)
    if drop_lost:
        _drop(uri, left)
    sys.exit(1 if left else 0)


def _drop(uri: str, left: Sequence[Damage]) -> None:
    from regrad.bank.verify import drop_lost

    manifest = drop_lost(uri, left)
    if manifest is not None:
        click.echo(f"version {manifest.label} is without the lost atoms; build or add computes them again", err=True)


def _damage(uri: str, version: int | None, repair: bool) -> list[Damage]:
    """Damaged manifests, and if the version's own can be read, the damage of the version."""
    from regrad.bank.verify import damaged_manifests, verify
    from regrad.errors import BankError

    manifests = damaged_manifests(uri)
    try:
        return manifests + verify(uri, version, repair, _progress)
    except BankError:
        if not manifests:
            raise
        return manifests
    finally:
        if sys.stderr.isatty():
            click.echo("\r\033[K", nl=False, err=True)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done:,} of {counted(total, 'shard')}", nl=False, err=True)


def _show(uri: str, damage: Sequence[Damage], left: Sequence[Damage]) -> None:
    for item in damage:
        click.echo(f"{printable(item.file)}: {printable(item.problem)}")
        if item.passages:
            click.echo(f"  lost: {show.ids_listed(item.passages)}")
    if not left:
        click.echo("all good" if not damage else "all good now")
        return
    lost = {passage_id for item in left for passage_id in item.passages}
    click.echo(f"{counted(len(left), 'damaged file')}, {counted(len(lost), 'lost atom')}")
    for way in _ways_out(uri, left):
        click.echo(f"- {way}")


def _ways_out(uri: str, damage: Sequence[Damage]) -> list[str]:
    files = [item.file for item in damage]
    ways = ["Put the files back from a copy of the bank: no version changes a file, so one of any age will do."]
    if any(name.startswith("lookup/") for name in files):
        ways.append(f"Look-up files can be made anew: `{show.verb('verify', uri)} --repair`.")
    if any(item.passages for item in damage):
        ways.append(
            f"Lost atoms: `{show.verb('verify', uri)} --drop-lost`, then compute them again (`regrad bank add`, or "
            f"`regrad build`); or do without (`{show.verb('delete', uri)} ID...`). --json lists them all."
        )
    if any(name.startswith(("index/", "shard-lists/", "manifest")) for name in files):
        ways.append(
            "A version without its manifest, index or shard list cannot be mended: an older one can be copied to a new "
            f"bank (`{show.verb('export', uri)} NEW --version N`), or build again."
        )
    return ways
