"""`regrad keys`: give people keys to a server, list them, take them back."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from serve_app.auth.keys import KeyRecord

from regrad.cli.options import LazyGroup


def _absolute(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    return value if "://" in value else os.path.abspath(value)


file_option = click.option(
    "--file",
    "uri",
    metavar="URI",
    envvar="REGRAD_KEYS",
    default="runs/keys.json",
    show_default=True,
    callback=_absolute,
    help="The file of keys, a path or URI; also from the environment variable REGRAD_KEYS.",
)


_INSTEAD = "Instead of the server's own limit."


@click.command("create")
@file_option
@click.option("--name", required=True, help="Whose key it is: a person, team or program.")
@click.option("--requests-per-minute", type=click.IntRange(1, 1_000_000), metavar="N", help=_INSTEAD)
@click.option("--tokens-per-minute", type=click.IntRange(1, 1_000_000_000), metavar="N", help=_INSTEAD)
@click.option("--expires", type=click.IntRange(1, 36500), metavar="DAYS", help="After so many days it is refused.")
def create(
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


@click.command("list")
@file_option
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON, for programs.")
def list_(uri: str, as_json: bool) -> None:
    """List the keys, the oldest first: ids, names, dates, limits and state, never a key or its hash."""
    from serve_app.auth.keys import KeyStore

    records = KeyStore(uri).records()
    if as_json:
        click.echo(json.dumps([record.model_dump(mode="json", exclude={"hash"}) for record in records], indent=1))
        return
    rows = [_HEAD, *map(_row, records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


_HEAD = ("id", "created", "expires", "requests/min", "tokens/min", "state", "name")


def _row(record: KeyRecord) -> tuple[str, ...]:
    return (
        record.id,
        str(record.created.date()),
        str(record.expires.date()) if record.expires else "never",
        str(record.requests_per_minute or "default"),
        str(record.tokens_per_minute or "default"),
        _state(record),
        record.name,
    )


def _state(record: KeyRecord) -> str:
    if record.disabled:
        return "revoked"
    return "expired" if record.expires and record.expires <= datetime.now(UTC) else "good"


@click.command("revoke")
@file_option
@click.argument("key_id", metavar="ID")
def revoke(uri: str, key_id: str) -> None:
    """Take a key back, for ever: servers refuse it within two seconds. `regrad keys list` shows the ids."""
    from serve_app.auth.keys import KeyStore

    record = KeyStore(uri).revoke(key_id)
    click.echo(f"revoked key {record.id} of {record.name}")


_VERBS = {
    "create": (f"{__name__}:create", "Make a key and print it, this once."),
    "list": (f"{__name__}:list_", "Who has keys, with which limits, and which are no longer good."),
    "revoke": (f"{__name__}:revoke", "Take a key back: servers refuse it within two seconds."),
}


@click.command("keys", cls=LazyGroup, verbs=_VERBS)
def keys() -> None:
    """Give people keys to a server, list them, take them back.

    Keys are in one file (--file), of which the server knows by its setting protection.keys. The file holds no key, only
    their hashes: a key that is lost cannot be read from it, make another.
    """
