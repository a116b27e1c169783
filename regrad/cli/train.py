"""`regrad train`."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options
from regrad.settings import load_settings
from regrad.training.meta.config import MetaTrainConfig


@click.command("train")
@settings_options("jobs/train-lab.yaml")
def command(config: Path, overrides: tuple[str, ...]) -> None:
    """Meta-train phi0 and the step sizes; writes a MetaInit (a PEFT adapter directory with step sizes)."""
    settings = load_settings(MetaTrainConfig, config, overrides)
    from ray_jobs import meta_train

    click.echo(meta_train.run(settings))
