"""`regrad build`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from regrad.bank.config import BuildConfig
from regrad.cli.options import QUARANTINED, settings_options
from regrad.settings import load_settings


@click.command("build")
@settings_options("jobs/build-lab.yaml")
def command(config: Path, overrides: tuple[str, ...]) -> None:
    """Make a version of the bank with one atom for every passage of a corpus, and no others.

    Stopped at any point, the same command goes on where it was. Passages that the bank has already, of the same
    text, are not computed again. The exit status is 3 if some passages could not be used: `regrad bank info
    --quarantine` lists them.
    """
    settings = load_settings(BuildConfig, config, overrides)
    from ray_jobs import build_bank

    built = build_bank.build(settings)
    click.echo(build_bank.describe(built.manifest, settings.bank.uri))
    sys.exit(QUARANTINED if built.refused else 0)
