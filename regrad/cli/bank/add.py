"""`regrad bank add`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from regrad.bank.config import BuildConfig
from regrad.cli.bank import show
from regrad.cli.options import QUARANTINED, settings_options
from regrad.settings import load_settings


@click.command("add")
@settings_options("jobs/build-lab.yaml")
def command(config: Path, overrides: tuple[str, ...]) -> None:
    """Add the passages of a corpus, or replace them; the others stay. Settings are those of `regrad build`.

    The exit status is 3 if some of its passages could not be used: `regrad bank info --quarantine` lists them.
    """
    settings = load_settings(BuildConfig, config, overrides)
    from ray_jobs import build_bank

    built = build_bank.build(settings, add=True)
    click.echo(build_bank.describe(built.manifest, settings.bank.uri))
    if built.refused:
        click.echo(f"{show.counted(built.refused, 'passage')} of this corpus refused", err=True)
    sys.exit(QUARANTINED if built.refused else 0)
