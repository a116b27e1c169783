"""`regrad keys list`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from regrad.cli.keys.arguments import file_option

if TYPE_CHECKING:
    from serve_app.auth.keys import KeyRecord


@click.command("list")
@file_option
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON, for programs.")
def command(uri: str, as_json: bool) -> None:
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
