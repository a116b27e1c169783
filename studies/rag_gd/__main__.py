"""`python -m studies.rag_gd`: run what is missing of the study, and write its report."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import torch

from regrad.errors import RegradError
from regrad.rebuild.steps import begun
from regrad.settings import load_settings
from studies.rag_gd.config import RagGdConfig
from studies.rag_gd.plan import make_steps
from studies.rag_gd.report import write_report
from studies.running import Progress

_HERE = Path(__file__).parent


def run(config: RagGdConfig) -> str:
    """Run what is not done, on one thread of this process; returns the line about the report.

    Its steps are too short for a cluster's start to be worth it.
    """
    torch.set_num_threads(1)
    progress = Progress(config.output)
    steps = make_steps(config)
    with progress.alone():
        for number, step in enumerate(steps, 1):
            if progress.done(step):
                continue
            record, before, began = begun(step.recorded), progress.clock(), time.monotonic()
            line = step.run()
            seconds = time.monotonic() - began
            progress.finish(record, line, seconds, before + seconds)
            click.echo(f"[{number}/{len(steps)}] {step.name}, {seconds:.0f} s: {line}")
    return write_report(config, progress.clock())


@click.command()
@click.option("--quick", is_flag=True, help="One seed, few cells, short trainings: to check that it runs.")
@click.option("--partial", is_flag=True, help="Run nothing; report what is done so far.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting, e.g. seeds=[0].")
def main(quick: bool, partial: bool, overrides: tuple[str, ...]) -> None:
    """Train linear attention on tasks of both retrieval interfaces, compare it with the constructed layer, report.

    Interrupted at any point, the same command continues.
    """
    try:
        config = load_settings(RagGdConfig, _HERE / ("quick.yaml" if quick else "standard.yaml"), overrides)
        click.echo(write_report(config, Progress(config.output).clock()) if partial else run(config))
    except RegradError as error:
        click.echo(f"error: {error} [{error.code}]", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
