"""`regrad serve rollback`."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options
from regrad.cli.serve.running import described, url_option, wait_for


@click.command("rollback")
@settings_options("serve/lab.yaml")
@url_option
def command(config: Path, overrides: tuple[str, ...], url: str | None) -> None:
    """Take the last update back; twice, and it is in force again."""
    from serve_app.local import load_serve_file
    from serve_app.rollout import changing_releases, resolve_all, rolled_back, write_releases

    application, _ = load_serve_file(config, overrides)
    with changing_releases(application) as current:
        releases = rolled_back(current)
        facts = resolve_all(application, releases)[1]
        write_releases(application, releases)
    click.echo(f"in force again, by {application.releases}:\n{described(facts)}")
    if url:
        wait_for(url, facts)
