"""`regrad meta-init import`."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.bank.config import LearnedStartConfig
from regrad.cli.options import settings_options
from regrad.settings import load_settings


@click.group("meta-init")
def meta_init() -> None:
    """MetaInits that were learned elsewhere."""


@meta_init.command("import")
@settings_options("jobs/import-start.yaml")
def import_(config: Path, overrides: tuple[str, ...]) -> None:
    """Make a MetaInit of what the ReGrad authors' Meta.py learned.

    \b
    The source is its output directory, with three files:
    meta_state_dict.pth   LoRA tensors and step sizes; a file that holds more than tensors is refused
    peft_config.json      rank and scaling
    learner_config.json   how the step sizes were learned
    """
    settings = load_settings(LearnedStartConfig, config, overrides)
    from regrad.bank.io import learned_start

    click.echo(learned_start.run(settings))
