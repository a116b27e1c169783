"""`regrad serve`: the application of a Serve configuration file, in the foreground until Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options
from regrad.cli.wait import wait_until_stopped


@click.command("serve")
@settings_options("serve/lab.yaml")
def command(config: Path, overrides: tuple[str, ...]) -> None:
    """Serve a bank over HTTP; --set changes the application's args (bank=s3://bucket/bank) or http.port=9000."""
    from ray_jobs.cluster import cluster, joined
    from serve_app.app import check_artefacts
    from serve_app.local import check_port, load_serve_file, serving

    application, http = load_serve_file(config, overrides)
    check_artefacts(application)
    if not joined():
        check_port(http)
    with cluster(), serving(application, http, shared=joined()) as url:
        click.echo(f"serving {application.bank} at {url} (docs at {url}/docs; Ctrl-C stops)")
        wait_until_stopped()
        click.echo("stopping")
