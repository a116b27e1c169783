"""`regrad synth`."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options
from regrad.settings import load_settings
from regrad.training.synthesis.config import SynthesisConfig


@click.command("synth")
@settings_options("jobs/synth-lab.yaml")
def command(config: Path, overrides: tuple[str, ...]) -> None:
    """Write questions and answers for a corpus that has none, as tasks for `regrad train`."""
    settings = load_settings(SynthesisConfig, config, overrides)
    from ray_jobs import synthesize

    click.echo(synthesize.run(settings))
