"""`regrad eval`."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.options import settings_options
from regrad.evaluation.config import EvalConfig
from regrad.settings import load_settings


@click.command("eval")
@settings_options("jobs/eval-lab.yaml")
@click.option("--report-only", is_flag=True, help="Write the report anew from the records that are there.")
def command(config: Path, overrides: tuple[str, ...], report_only: bool) -> None:
    """Answer question sets with every method, score the answers, and write a report.

    Stopped at any point, the same command goes on where it was: cells that are done are kept, as long as their
    settings and data are the same.
    """
    settings = load_settings(EvalConfig, config, overrides)
    if report_only:
        from regrad.evaluation.output import Output
        from regrad.evaluation.report.writing import write_report

        click.echo(write_report(Output(settings.output)))
        return
    from ray_jobs import evaluate

    click.echo(evaluate.run(settings))
