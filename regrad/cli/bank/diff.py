"""`regrad bank diff`."""

from __future__ import annotations

import click

from regrad.cli.bank import show
from regrad.cli.bank.arguments import json_option, uri_argument


@click.command("diff")
@uri_argument
@click.argument("older", type=int)
@click.argument("newer", type=int, required=False)
@json_option
def command(uri: str, older: int, newer: int | None, as_json: bool) -> None:
    """Compare version OLDER with NEWER (default: the one in force); `regrad bank info` lists the versions."""
    from regrad.bank.inspect import diff

    found = diff(uri, older, newer)
    if as_json:
        show.as_json(found)
        return
    click.echo(f"{found.older} -> {found.newer}")
    for name, ids in (("added", found.added), ("removed", found.removed), ("changed", found.changed)):
        click.echo(f"{name:<8} {len(ids):,}{': ' if ids else ''}{show.listed(ids)}")
    click.echo(f"{'moved':<8} {found.moved:,} (the same atoms, elsewhere)")
