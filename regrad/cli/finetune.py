"""`regrad finetune`."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options
from regrad.settings import load_settings
from regrad.training.lora.config import FinetuneConfig


@click.command("finetune")
@settings_options("jobs/finetune-lab.yaml")
def command(config: Path, overrides: tuple[str, ...]) -> None:
    """Train one LoRA for all questions: the rivals that are continually trained or fine-tuned."""
    settings = load_settings(FinetuneConfig, config, overrides)
    from ray_jobs import finetune

    click.echo(finetune.run(settings))
