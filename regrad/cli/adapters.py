"""`regrad adapters`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from regrad.cli.options import QUARANTINED, settings_options
from regrad.settings import load_settings
from regrad.training.lora.config import AdaptersConfig


@click.command("adapters")
@settings_options("jobs/adapters-lab.yaml")
def command(config: Path, overrides: tuple[str, ...]) -> None:
    """Make a version of a bank with a trained LoRA for every passage that `regrad augment` wrote about, and no others.

    Stopped at any point, the same command goes on where it was. The exit status is 3 if some passages could not be
    used: `regrad bank info --quarantine` lists them.
    """
    settings = load_settings(AdaptersConfig, config, overrides)
    from ray_jobs import build_bank, train_adapters

    built = train_adapters.train(settings)
    click.echo(build_bank.describe(built.manifest, settings.bank.uri))
    sys.exit(QUARANTINED if built.refused else 0)
