"""`regrad bank add`, `delete`, `compact` and `gc`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from regrad.bank.config import BuildConfig
from regrad.cli.bank import output as show
from regrad.cli.bank.output import check_ids, given_ids, ids_option, uri_argument
from regrad.cli.options import QUARANTINED, settings_options
from regrad.settings import load_settings
from regrad.text import counted


@click.command("add")
@settings_options("jobs/build-lab.yaml")
def add(config: Path, overrides: tuple[str, ...]) -> None:
    """Add the passages of a corpus, or replace them; the others stay. Settings are those of `regrad build`.

    The exit status is 3 if some of its passages could not be used: `regrad bank info --quarantine` lists them.
    """
    settings = load_settings(BuildConfig, config, overrides)
    from ray_jobs import build_bank

    built = build_bank.build(settings, add=True)
    click.echo(build_bank.describe(built.manifest, settings.bank.uri))
    if built.refused:
        click.echo(f"{counted(built.refused, 'passage')} of this corpus refused", err=True)
    sys.exit(QUARANTINED if built.refused else 0)


@click.command("delete")
@uri_argument
@click.argument("ids", nargs=-1, metavar="[ID]...")
@ids_option("Passages to forget")
def delete(uri: str, ids: tuple[str, ...], ids_from: str | None) -> None:
    """Forget passages: a new version without them, and no older version gives them out any more.

    Also passages that were refused, or that only older versions have. All or none: an id that is nowhere is an error,
    and nothing is deleted then. It does not ask back. Their bytes stay in files until `regrad bank compact` and
    `regrad bank gc` have run.
    """
    check_ids(ids)
    wanted = sorted({*ids, *(given_ids(ids_from) or ())})
    if not wanted:
        raise click.UsageError("name the ids to forget, or a file of them with --ids-from")
    from regrad.bank.maintenance import delete

    manifest = delete(uri, wanted)
    click.echo(f"forgot {counted(len(wanted), 'passage')} in version {manifest.label}: {show.ids_listed(wanted)}")
    click.echo(f"{counted(manifest.passages, 'passage')} left. To remove the bytes from the disk, too, run")
    click.echo(f"    {show.verb('compact', uri)}\n    {show.verb('gc', uri)}")


@click.command("compact")
@uri_argument
@click.option("--shard-bytes", type=click.IntRange(min=1), metavar="N", help="Size of a new shard (default: 64 MiB).")
def compact(uri: str, shard_bytes: int | None) -> None:
    """Copy what is left out of shards that hold deleted or replaced atoms, and put small shards and parts together.

    Makes a new version with the same atoms. The former files stay until `regrad bank gc` removes them.
    """
    from regrad.bank.format import read_manifest
    from regrad.bank.maintenance import SHARD_BYTES, compact
    from regrad.storage import Storage

    before = read_manifest(Storage(uri))
    manifest = compact(uri, shard_bytes or SHARD_BYTES)
    if manifest.version == before.version:
        click.echo(f"version {manifest.label} is compact already: nothing was done")
        return
    shards = sum(part.shards for part in manifest.parts)
    click.echo(
        f"version {manifest.label}: {counted(manifest.passages, 'passage')} in {counted(shards, 'shard')}, "
        f"before in {sum(part.shards for part in before.parts):,}"
    )
    click.echo(f"The former files are still there; `{show.verb('gc', uri)}` removes them.")


@click.command("gc")
@uri_argument
@click.option(
    "--keep", type=int, default=1, show_default=True, metavar="N", help="How many of the newest versions stay."
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="Age from which a file that no version names is removed: a writer at work may be about to name it.",
)
@click.option("--abandon-builds", is_flag=True, help="Remove what builds that did not end have done, too.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def gc(uri: str, keep: int, grace: float, abandon_builds: bool, dry_run: bool) -> None:
    """Remove old versions, the files that only they needed, and what writers that died have left.

    Servers that still have an old version open lose what is removed: restart them first.
    """
    from regrad.bank.maintenance import gc

    removed = gc(uri, keep, grace, abandon_builds, dry_run)
    if not removed.files:
        click.echo("nothing to remove")
        return
    old = ", ".join(map(str, removed.versions)) or "none"
    click.echo(
        f"{'would remove' if dry_run else 'removed'} {counted(len(removed.files), 'file')}, "
        f"{show.size(removed.bytes)}; versions: {old}"
    )
    if dry_run:
        for name in removed.files:
            click.echo(f"    {name}")
