"""`regrad keys create`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from regrad.cli.keys.arguments import file_option

_INSTEAD = "Instead of the server's own limit."


@click.command("create")
@file_option
@click.option("--name", required=True, help="Whose key it is: a person, team or program.")
@click.option("--requests-per-minute", type=click.IntRange(1, 1_000_000), metavar="N", help=_INSTEAD)
@click.option("--tokens-per-minute", type=click.IntRange(1, 1_000_000_000), metavar="N", help=_INSTEAD)
@click.option("--expires", type=click.IntRange(1, 36500), metavar="DAYS", help="After so many days it is refused.")
def command(
    uri: str, name: str, requests_per_minute: int | None, tokens_per_minute: int | None, expires: int | None
) -> None:
    """Make a key and print it on standard output, this once: nobody can print it again."""
    from serve_app.auth.keys import KeyStore, make_key

    created = datetime.now(UTC).replace(microsecond=0)
    until = created + timedelta(days=expires) if expires else None
    key, record = make_key(name, created, until, requests_per_minute, tokens_per_minute)
    KeyStore(uri).add(record)
    click.echo(f"key {record.id} for {name} is in {uri}; hand it over now, it is not shown again:", err=True)
    click.echo(key)
