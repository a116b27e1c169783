"""`regrad rebuild`: everything that a change of corpus or training needs, as one command, and its verbs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from regrad.cli.bank.output import json_option, print_json
from regrad.cli.options import QUARANTINED, LazyGroup, printable, printable_lines, settings_options
from regrad.errors import NotPromoted
from regrad.settings import load_settings

_DEFAULT = "jobs/rebuild-lab.yaml"
NOT_PROMOTED = 4
"""The exit status of a rebuild whose version was kept aside, since its score did not hold."""


@click.command("rollback")
@settings_options(_DEFAULT)
def rollback(config: str | Path, overrides: tuple[str, ...]) -> None:
    """Restore the previous version, also in the servers; a second rollback undoes it."""
    from regrad.rebuild.config import RebuildConfig

    settings = load_settings(RebuildConfig, config, overrides)
    from regrad.cli.rebuild.steps import serve
    from regrad.rebuild.flow import roll_back
    from regrad.storage import Storage

    click.echo(roll_back(Storage(settings.output), lambda version: serve(settings, version)))


@click.command("status")
@settings_options(_DEFAULT)
@json_option
def status(config: str | Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show the versions, which one is current, and the runs of the steps with their times and costs."""
    from regrad.rebuild.config import RebuildConfig

    settings = load_settings(RebuildConfig, config, overrides)
    from regrad.rebuild.status import described, state
    from regrad.storage import Storage

    found = state(Storage(settings.output))
    if as_json:
        print_json(found)
    else:
        click.echo(printable_lines(described(found)))


@click.command("prune")
@settings_options(_DEFAULT)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="N",
    help="How many of the newest versions to keep.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
def prune(config: str | Path, overrides: tuple[str, ...], keep: int, dry_run: bool) -> None:
    """Remove old versions, with what nothing else needs of their parts, runs and banks.

    The current version, the one before it, those that servers of the settings' `serving` use, and what an unfinished
    rebuild has done are kept, however old. If it is interrupted, the same command or the next rebuild continues.
    """
    from regrad.rebuild.config import RebuildConfig

    settings = load_settings(RebuildConfig, config, overrides)
    from regrad.cli.rebuild.serving import in_use
    from regrad.rebuild.prune import described, prune
    from regrad.storage import Storage

    used = in_use(settings.serving, lambda text: click.echo(printable(text), err=True))
    click.echo(printable_lines(described(prune(Storage(settings.output), keep, used, dry_run), dry_run)))


_VERBS = {
    "status": (f"{__name__}:status", "Show the versions and the runs of the steps."),
    "rollback": (f"{__name__}:rollback", "Restore the previous version."),
    "prune": (f"{__name__}:prune", "Remove old versions and what only they needed."),
}


@click.group("rebuild", cls=LazyGroup, verbs=_VERBS, invoke_without_command=True, no_args_is_help=False)
@settings_options(_DEFAULT)
@click.option("--dry-run", is_flag=True, help="Print the plan only, with hours, bytes and money.")
@json_option
@click.pass_context
def rebuild(
    context: click.Context, config: str | Path, overrides: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Meta-train, index, build, verify and evaluate; make the new version current if its score holds.

    Steps that are done are skipped; if it is interrupted, the same command resumes it. The previous version is kept,
    for `regrad rebuild rollback`. The exit status is 3 if the current version lacks passages that could not be used, 4
    if the score did not hold and the new version is kept aside.
    """
    if context.invoked_subcommand is not None:
        sources = [context.get_parameter_source(name) for name in ("config", "overrides", "dry_run")]
        if click.core.ParameterSource.COMMANDLINE in sources:
            raise click.UsageError(f"put options after the verb: regrad rebuild {context.invoked_subcommand} ...")
        return
    from regrad.rebuild.config import RebuildConfig

    settings = load_settings(RebuildConfig, config, overrides)
    from regrad.cli.rebuild import job

    if dry_run:
        plan = job.plan(settings)
        print_json(plan.as_json()) if as_json else click.echo(printable_lines(plan.described()))
        return
    try:
        line, refused = job.rebuild_of(settings, lambda text: click.echo(printable(text), err=True))
    except NotPromoted as error:
        click.echo(f"error: {printable(str(error))} [{error.code}]", err=True)
        sys.exit(NOT_PROMOTED)
    click.echo(line)
    sys.exit(QUARANTINED if refused else 0)
