"""`regrad keys revoke`."""

from __future__ import annotations

import click

from regrad.cli.keys.arguments import file_option


@click.command("revoke")
@file_option
@click.argument("key_id", metavar="ID")
def command(uri: str, key_id: str) -> None:
    """Take a key back, for ever: servers refuse it within two seconds. `regrad keys list` shows the ids."""
    from serve_app.auth.keys import KeyStore

    record = KeyStore(uri).revoke(key_id)
    click.echo(f"revoked key {record.id} of {record.name}")
