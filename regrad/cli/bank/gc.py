"""`regrad bank gc`."""

from __future__ import annotations

import click

from regrad.cli.bank import show
from regrad.cli.bank.arguments import uri_argument


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
def command(uri: str, keep: int, grace: float, abandon_builds: bool, dry_run: bool) -> None:
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
        f"{'would remove' if dry_run else 'removed'} {show.counted(len(removed.files), 'file')}, "
        f"{show.size(removed.bytes)}; versions: {old}"
    )
    if dry_run:
        for name in removed.files:
            click.echo(f"    {name}")
