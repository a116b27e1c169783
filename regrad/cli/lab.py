"""`regrad lab world` and `regrad lab pretrain`."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options
from regrad.config import LabConfig, LabPretrainConfig, LabWriterConfig
from regrad.settings import load_settings


@click.group("lab")
def command() -> None:
    """The self-contained world: invented people, their documents and questions, and a tiny Llama."""


@command.command("world")
@settings_options("jobs/lab-world.yaml")
def world(config: Path, overrides: tuple[str, ...]) -> None:
    """Write corpus, questions, meta-training and dev tasks; of a harder lab with `--set variant=NAME`."""
    settings = load_settings(LabConfig, config, overrides)
    from regrad.lab.files import write_lab
    from regrad.lab.sets.files import write_hard_lab

    storage = write_lab(settings) if settings.variant == "people" else write_hard_lab(settings)
    click.echo(f"lab world at {storage.uri}: {', '.join(storage.list())}")


@command.command("pretrain")
@settings_options("jobs/lab-pretrain.yaml")
def pretrain(config: Path, overrides: tuple[str, ...]) -> None:
    """Train the tiny Llama and its tokenizer from nothing (about a quarter of an hour on one core)."""
    settings = load_settings(LabPretrainConfig, config, overrides)
    from regrad.lab.pretraining import run

    click.echo(run.pretrain(settings))


@command.command("writer")
@settings_options("jobs/lab-writer.yaml")
def writer(config: Path, overrides: tuple[str, ...]) -> None:
    """Teach a copy of the base to write questions, for `regrad synth` (half a minute on one core)."""
    settings = load_settings(LabWriterConfig, config, overrides)
    from regrad.lab.pretraining import questions

    click.echo(questions.make_writer(settings))
