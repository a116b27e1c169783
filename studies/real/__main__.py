"""`python -m studies.real`: run what is missing of the real study, and write its report."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from regrad.errors import RegradError
from regrad.settings import load_settings
from studies.real.config import RealConfig
from studies.real.plan import make_steps
from studies.real.report import write_report
from studies.running import run_steps

_HERE = Path(__file__).parent


@click.command()
@click.option("--quick", is_flag=True, help="Few questions of two sets, short trainings: to check that it runs.")
@click.option("--full", is_flag=True, help="Three seeds, longer trainings, more questions.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting, e.g. data=DIRECTORY.")
def main(quick: bool, full: bool, overrides: tuple[str, ...]) -> None:
    """Meta-train SmolLM2 on SQuAD, ask it about articles that it never saw, compare, report.

    Interrupted at any point, the same command continues.
    """
    if quick and full:
        raise click.UsageError("--quick or --full, not both")
    name = "quick" if quick else "full" if full else "standard"
    logging.getLogger("ray_jobs").setLevel(logging.WARNING)
    try:
        config = load_settings(RealConfig, _HERE / f"{name}.yaml", overrides)
        seconds = run_steps(make_steps(config), config.output, config.cluster.workers, click.echo)
        click.echo(write_report(config, seconds))
    except RegradError as error:
        click.echo(f"error: {error} [{error.code}]", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
