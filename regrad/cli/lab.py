"""`regrad lab world`, `pretrain`, `writer`, `encoder` and `report`."""

from __future__ import annotations

import logging
from pathlib import Path

import click
from click.core import ParameterSource

from regrad.cli.options import settings_options
from regrad.errors import ConfigError
from regrad.lab.config import LabConfig, LabEncoderConfig, LabPretrainConfig, LabWriterConfig
from regrad.settings import builtin_config, load_settings


@click.group("lab")
def lab() -> None:
    """The self-contained lab: invented people, their documents and questions, and a tiny Llama."""


@lab.command("world")
@settings_options("jobs/lab-world.yaml")
def world(config: str | Path, overrides: tuple[str, ...]) -> None:
    """Write corpus, questions, meta-training and dev tasks; for a harder lab use `--set variant=NAME`."""
    settings = load_settings(LabConfig, config, overrides)
    from regrad.lab.files import write_hard_lab, write_lab

    storage = write_lab(settings) if settings.variant == "people" else write_hard_lab(settings)
    click.echo(f"lab world at {storage.uri}: {', '.join(storage.list())}")


@lab.command("pretrain")
@settings_options("jobs/lab-pretrain.yaml")
def pretrain(config: str | Path, overrides: tuple[str, ...]) -> None:
    """Train the tiny Llama and its tokenizer from scratch (about 15 minutes on one core)."""
    settings = load_settings(LabPretrainConfig, config, overrides)
    from regrad.lab.pretraining import pretrain_base

    click.echo(pretrain_base(settings))


@lab.command("writer")
@settings_options("jobs/lab-writer.yaml")
def writer(config: str | Path, overrides: tuple[str, ...]) -> None:
    """Teach a copy of the base to write questions, for `regrad synth` (half a minute on one core)."""
    settings = load_settings(LabWriterConfig, config, overrides)
    from regrad.lab import question_writer

    click.echo(question_writer.make_writer(settings))


@lab.command("encoder")
@settings_options("jobs/lab-encoder.yaml")
def encoder(config: str | Path, overrides: tuple[str, ...]) -> None:
    """Write an untrained text encoder with the lab's words, for a dense index and `regrad retriever`."""
    settings = load_settings(LabEncoderConfig, config, overrides)
    from regrad.lab.encoder import write_encoder

    click.echo(write_encoder(settings))


@lab.command("report")
@settings_options("jobs/lab-report.yaml")
@click.option("--quick", is_flag=True, help="One seed, short trainings and few questions, to check that it runs.")
def report(config: str | Path, overrides: tuple[str, ...], quick: bool) -> None:
    """Run every method and study on the lab, and write a report with a verdict on each claim of the paper.

    If interrupted, run the same command to resume.
    """
    given = click.get_current_context().get_parameter_source("config") is not ParameterSource.DEFAULT
    if quick and given:
        raise click.UsageError("--quick has its own settings: leave out --config, or change them with --set")
    try:
        from studies.lab_report.config import LabReportConfig
        from studies.lab_report.report import run_report
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("studies"):
            raise
        raise ConfigError(
            "the report is a study in regrad's repository and not part of the installed package; clone the repository "
            "and install from there (make install)",
            code="study_not_installed",
        ) from error
    path = builtin_config("jobs/lab-report-quick.yaml") if quick else config
    settings = load_settings(LabReportConfig, path, overrides)
    logging.getLogger("ray_jobs").setLevel(logging.WARNING)
    click.echo(run_report(settings, click.echo))
