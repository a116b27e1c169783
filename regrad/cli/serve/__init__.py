"""`regrad serve`: the server in the foreground, and verbs for one that runs. A new verb is its file and a line here."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.lazy import LazyGroup
from regrad.cli.options import settings_options
from serve_app.config import ServeConfig

_VERBS = {
    "update": "Answer from another MetaInit or bank from now on, or for a share of the traffic.",
    "rollback": "Take the last update back.",
    "status": "What a running server answers from.",
}


@click.group(
    "serve", cls=LazyGroup, package="regrad.cli.serve", verbs=_VERBS, invoke_without_command=True, no_args_is_help=False
)
@settings_options("serve/lab.yaml")
@click.pass_context
def command(context: click.Context, config: Path, overrides: tuple[str, ...]) -> None:
    """Serve a bank over HTTP; --set changes the application's args (bank=s3://bucket/bank) or http.port=9000.

    Without a verb it serves, in the foreground until Ctrl-C. The verbs speak to servers that run, through the file
    `releases` of their settings.
    """
    if context.invoked_subcommand is None:
        _serve(config, overrides)
    elif _given(context):
        raise click.UsageError(f"put --config and --set behind the verb: regrad serve {context.invoked_subcommand} ...")


def _given(context: click.Context) -> bool:
    sources = [context.get_parameter_source(name) for name in ("config", "overrides")]
    return any(source is click.core.ParameterSource.COMMANDLINE for source in sources)


def _check_not_overruled(application: ServeConfig, overrides: tuple[str, ...]) -> None:
    """Raise `ConfigError` if the releases in force say another MetaInit or bank than the command line."""
    from regrad.errors import ConfigError
    from serve_app.rollout import read_releases

    main = read_releases(application).releases[0]
    for key in ("meta_init", "bank"):
        given, found = getattr(application, key), getattr(main, key)
        if given != found and any(override.startswith(f"{key}=") for override in overrides):
            raise ConfigError(
                f"{key}={given} was asked for, but {application.releases} has {found} in force; put the new one in "
                "force with `regrad serve update`, or give this server a file of its own with --set releases=FILE"
            )


def _serve(config: Path, overrides: tuple[str, ...]) -> None:
    from ray_jobs.cluster import cluster, joined
    from regrad.cli.wait import wait_until_stopped
    from serve_app.app import check_artefacts
    from serve_app.local import check_port, load_serve_file, serving
    from serve_app.rollout import read_releases

    application, http = load_serve_file(config, overrides)
    _check_not_overruled(application, overrides)
    check_artefacts(application)
    if not joined():
        check_port(http)
    with cluster(), serving(application, http, shared=joined()) as url:
        click.echo(f"serving {read_releases(application).releases[0].bank} at {url} (docs at {url}/docs; Ctrl-C stops)")
        wait_until_stopped()
        click.echo("stopping")
