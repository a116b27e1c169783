"""`regrad serve status`."""

from __future__ import annotations

import click

from regrad.cli.serve.running import described, releases_at


@click.command("status")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where the server is.")
def command(url: str) -> None:
    """What a running server answers from: MetaInit, bank, version and share of each release."""
    click.echo(described(releases_at(url)))
