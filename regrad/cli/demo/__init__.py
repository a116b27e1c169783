"""`regrad demo`: the whole path on the lab world, with real components, in minutes."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options

# As few steps as show that gradients answer, and few questions.
QUICK = ("output=runs/demo-quick", "train.optimizer.steps=120", "lab.questions=60", "raw_gammas=[1.0, 2.0]")


@click.command("demo")
@settings_options("jobs/demo.yaml")
@click.option("--quick", is_flag=True, help="A short training and 60 questions, to check that it runs.")
@click.option("--keep", is_flag=True, help="Keep the server running at the end, until Ctrl-C.")
def demo(config: str | Path, overrides: tuple[str, ...], quick: bool, keep: bool) -> None:
    """Meta-train, index, fill a bank, serve, and ask 200 questions about people that the model has never seen."""
    from regrad.cli.demo.config import DemoConfig
    from regrad.settings import load_settings

    settings = load_settings(DemoConfig, config, (*QUICK, *overrides) if quick else overrides)
    from regrad.cli.demo.run import run_demo

    run_demo(settings, keep, click.echo)
