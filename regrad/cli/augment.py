"""`regrad augment`."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options
from regrad.settings import load_settings
from regrad.training.lora.config import AugmentConfig


@click.command("augment")
@settings_options("jobs/augment-lab.yaml")
def command(config: Path, overrides: tuple[str, ...]) -> None:
    """Write another wording of each passage and questions about it, or take those of a data_aug or task file."""
    settings = load_settings(AugmentConfig, config, overrides)
    from ray_jobs import augment

    click.echo(augment.run(settings))
