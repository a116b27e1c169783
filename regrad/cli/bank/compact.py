"""`regrad bank compact`."""

from __future__ import annotations

import click

from regrad.cli.bank import show
from regrad.cli.bank.arguments import uri_argument


@click.command("compact")
@uri_argument
@click.option("--shard-bytes", type=click.IntRange(min=1), metavar="N", help="Size of a new shard (default: 64 MiB).")
def command(uri: str, shard_bytes: int | None) -> None:
    """Copy what is left out of shards that hold deleted or replaced atoms, and put small shards and parts together.

    Makes a new version with the same atoms. The former files stay until `regrad bank gc` removes them.
    """
    from regrad.bank.maintenance import SHARD_BYTES, compact
    from regrad.bank.manifest import read_manifest
    from regrad.storage import Storage

    before = read_manifest(Storage(uri))
    manifest = compact(uri, shard_bytes or SHARD_BYTES)
    if manifest.version == before.version:
        click.echo(f"version {manifest.label} is compact already: nothing was done")
        return
    shards = sum(part.shards for part in manifest.parts)
    click.echo(
        f"version {manifest.label}: {show.counted(manifest.passages, 'passage')} in {show.counted(shards, 'shard')}, "
        f"before in {sum(part.shards for part in before.parts):,}"
    )
    click.echo(f"The former files are still there; `{show.verb('gc', uri)}` removes them.")
