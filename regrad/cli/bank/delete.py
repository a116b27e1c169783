"""`regrad bank delete`."""

from __future__ import annotations

import click

from regrad.cli.bank import show
from regrad.cli.bank.arguments import check_ids, given_ids, ids_option, uri_argument


@click.command("delete")
@uri_argument
@click.argument("ids", nargs=-1, metavar="[ID]...")
@ids_option("Passages to forget")
def command(uri: str, ids: tuple[str, ...], ids_from: str | None) -> None:
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
    click.echo(f"forgot {show.counted(len(wanted), 'passage')} in version {manifest.label}: {show.listed(wanted)}")
    click.echo(f"{show.counted(manifest.passages, 'passage')} left. To remove the bytes from the disk, too, run")
    click.echo(f"    {show.verb('compact', uri)}\n    {show.verb('gc', uri)}")
