"""`regrad build`."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options
from regrad.config import BuildConfig
from regrad.settings import load_settings


@click.command("build")
@settings_options("jobs/build-lab.yaml")
def command(config: Path, overrides: tuple[str, ...]) -> None:
    """Compute one atom for every passage of a corpus and commit them as a new version of the bank."""
    settings = load_settings(BuildConfig, config, overrides)
    from ray_jobs import build_bank

    click.echo(build_bank.run(settings))
