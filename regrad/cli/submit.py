"""`regrad submit`: the job verbs on a cluster that runs already, and its verbs for jobs that were submitted."""

from __future__ import annotations

import importlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regrad.cli.jobs import JOBS, REBUILD, JobVerb
from regrad.cli.options import LazyGroup, printable, settings_options
from regrad.errors import ConfigError
from regrad.settings import apply_override, parse_settings, read_yaml

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from ray_jobs.submission import Submission

_address = click.option(
    "--address",
    default="http://127.0.0.1:8265",
    envvar="RAY_API_SERVER_ADDRESS",
    show_default=True,
    metavar="URL",
    help="The cluster's dashboard.",
)


_OPTIONS = (
    _address,
    click.option(
        "--working-dir",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=Path(),
        show_default="the current one",
        help="The directory to upload a copy of for the job; the configuration must be in it, or at a URI.",
    ),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="Files not to upload (.gitignore syntax)."),
    click.option(
        "--env", multiple=True, metavar="NAME=VALUE", help="An environment variable of the job; do not pass secrets."
    ),
    click.option("--detach", is_flag=True, help="Do not wait for the job; `regrad submit logs` follows it."),
    click.option("--again", is_flag=True, help="Run it even if it has already succeeded."),
)

SUBMITTED = (*JOBS, REBUILD)
_HELP = (
    "The job continues if this command is interrupted. A job that was submitted before with the same configuration is "
    "found and not run twice; one that failed or was stopped is resumed."
)


def _command(verb: JobVerb) -> click.Command:
    def run(
        config: str | Path, overrides: tuple[str, ...], address: str, detach: bool, again: bool, **upload: Any
    ) -> None:
        submission = _submission(verb, config, overrides, **upload)
        from ray_jobs.submission import Jobs

        jobs = Jobs(address)
        job, new = jobs.submit(submission, again)
        click.echo(f"{'submitted' if new else 'found'} {describe(job)}", err=True)
        if not detach:
            _follow(jobs, str(job.submission_id))

    command: Any = run
    for option in reversed(_OPTIONS):
        command = option(command)
    text = f"Run `regrad {verb.name}` on a cluster, and follow its output.\n\n{_HELP}"
    return click.command(verb.name, help=text)(settings_options(verb.config)(command))


def _submission(
    verb: JobVerb,
    config: str | Path,
    overrides: tuple[str, ...],
    working_dir: Path,
    exclude: tuple[str, ...],
    env: tuple[str, ...],
) -> Submission:
    """The job, checked: its settings before Ray is imported, then what would be uploaded."""
    files: list[str | Path] = []
    content = read_yaml(config, files=files)
    for override in overrides:
        apply_override(content, override, files)
    module, _, name = verb.settings.partition(":")
    parse_settings(getattr(importlib.import_module(module), name), content, str(config))
    from ray_jobs.submission import Submission

    submission = Submission(
        verb=verb.name,
        module=verb.job.partition(":")[0],
        files=files,
        overrides=overrides,
        content=content,
        working_dir=working_dir,
        excludes=exclude,
        environment=dict(map(_variable, env)),
    )
    submission.check()
    return submission


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise ConfigError(f"--env {text!r} is not of the form NAME=VALUE", code="bad_variable", variable=name)
    return name, value


def _follow(jobs: Any, name: str) -> None:
    try:
        jobs.follow(name, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(
            f"\n{name} continues: `regrad submit logs {name}` follows it, `regrad submit stop` ends it", err=True
        )
        raise


def describe(job: JobDetails) -> str:
    """One line about a job: its name, its status, when it began, and its command line."""
    began = f"{datetime.fromtimestamp(job.start_time / 1000, UTC):%Y-%m-%d %H:%M} UTC" if job.start_time else "not yet"
    return printable(f"{job.submission_id}  {job.status.value.lower()}  {began}  {job.entrypoint}")


@click.command("status")
@click.argument("job", required=False)
@_address
def status(job: str | None, address: str) -> None:
    """Show a job's status, or list all jobs that regrad submitted."""
    from ray_jobs.submission import Jobs

    jobs = Jobs(address)
    for found in [jobs.job(job)] if job else jobs.all():
        click.echo(describe(found))
        if job and found.message:
            click.echo(printable(found.message.splitlines()[0]))


@click.command("stop")
@click.argument("job")
@_address
def stop(job: str, address: str) -> None:
    """Stop a job and wait until it has ended; submit it again to resume it."""
    from ray_jobs.submission import Jobs

    click.echo(describe(Jobs(address).stop(job)))


@click.command("logs")
@click.argument("job")
@click.option("--no-follow", is_flag=True, help="Print what is there already, and exit.")
@_address
def logs(job: str, no_follow: bool, address: str) -> None:
    """Follow a job's output until it ends; the exit status is 0 if it succeeded."""
    from ray_jobs.submission import Jobs

    jobs = Jobs(address)
    if no_follow:
        click.echo(jobs.logs(job), nl=False)
    else:
        _follow(jobs, job)


COMMANDS: dict[str, click.Command] = {verb.name: _command(verb) for verb in SUBMITTED}

_VERBS = {
    **{verb.name: (f"{__name__}:COMMANDS", f"Run `regrad {verb.name}` there.") for verb in SUBMITTED},
    "status": (f"{__name__}:status", "Show a job's status, or list all jobs."),
    "logs": (f"{__name__}:logs", "Follow a job's output."),
    "stop": (f"{__name__}:stop", "Stop a job."),
}


@click.group("submit", cls=LazyGroup, verbs=_VERBS)
def submit() -> None:
    """Run jobs on a Ray cluster through its dashboard, as `ray job submit` does."""
