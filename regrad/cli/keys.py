"""`regrad keys`: create, list and revoke API keys of a server."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import click

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


_INSTEAD = "Overrides the server's limit."


@click.command("create")
@file_option
@click.option("--name", required=True, help="Owner of the key: a person, team or program.")
@click.option("--requests-per-minute", type=click.IntRange(1, 1_000_000), metavar="N", help=_INSTEAD)
@click.option("--tokens-per-minute", type=click.IntRange(1, 1_000_000_000), metavar="N", help=_INSTEAD)
@click.option("--expires", type=click.IntRange(1, 36500), metavar="DAYS", help="Days until the key expires.")
def create(
    uri: str, name: str, requests_per_minute: int | None, tokens_per_minute: int | None, expires: int | None
) -> None:
    """Make a key and print it on standard output. It cannot be shown again."""
    from serve_app.auth.keys import KeyStore, make_key

    created = datetime.now(UTC).replace(microsecond=0)
    until = created + timedelta(days=expires) if expires else None
    key, record = make_key(name, created, until, requests_per_minute, tokens_per_minute)
    KeyStore(uri).add(record)
    click.echo(f"key {record.id} for {name} is in {uri}; hand it over now, it is not shown again:", err=True)
    click.echo(key)


@click.command("list")
@file_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def list_(uri: str, as_json: bool) -> None:
    """List the keys, the oldest first: ids, names, dates, limits and state, never a key or its hash."""
    from serve_app.auth.keys import KeyStore

    records = KeyStore(uri).records()
    if as_json:
        click.echo(json.dumps([record.model_dump(mode="json", exclude={"hash"}) for record in records], indent=1))
        return
    rows: list[tuple[str, ...]] = [("id", "created", "expires", "requests/min", "tokens/min", "state", "name")]
    for record in records:
        state = "good"
        if record.disabled:
            state = "revoked"
        elif record.expires and record.expires <= datetime.now(UTC):
            state = "expired"
        dates = str(record.created.date()), str(record.expires.date()) if record.expires else "never"
        limits = [str(limit or "default") for limit in (record.requests_per_minute, record.tokens_per_minute)]
        rows.append((record.id, *dates, *limits, state, record.name))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


@click.command("revoke")
@file_option
@click.argument("key_id", metavar="ID")
def revoke(uri: str, key_id: str) -> None:
    """Revoke a key permanently: servers refuse it within two seconds. `regrad keys list` shows the ids."""
    from serve_app.auth.keys import KeyStore

    record = KeyStore(uri).revoke(key_id)
    click.echo(f"revoked key {record.id} of {record.name}")


_VERBS = {
    "create": (f"{__name__}:create", "Make a key and print it once."),
    "list": (f"{__name__}:list_", "List the keys with their owners, limits and states."),
    "revoke": (f"{__name__}:revoke", "Revoke a key: servers refuse it within two seconds."),
}


@click.command("keys", cls=LazyGroup, verbs=_VERBS)
def keys() -> None:
    """Create, list and revoke API keys of a server.

    The keys are in one file (--file), which the server's setting protection.keys names. The file holds only hashes of
    keys: a lost key cannot be recovered; create another.
    """
