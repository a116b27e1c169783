"""`regrad plan`: a serving configuration from measurements of this machine."""

from __future__ import annotations

from pathlib import Path

import click

from regrad.cli.bank.output import json_option
from regrad.cli.options import printable, printable_lines, settings_options
from regrad.settings import load_settings


@click.command("plan")
@settings_options("jobs/plan-lab.yaml")
@click.option("--check", is_flag=True, help="Afterwards, run the given and the chosen configuration under load.")
@json_option
def plan(config: str | Path, overrides: tuple[str, ...], check: bool, as_json: bool) -> None:
    """Plan a server: measure its stages, search replicas, batches and caches, write the best configuration.

    Retriever and bank loader are tried as replicas of their own and inside the gateways (`embedded`).

    Prints the Pareto front of time to first token against answers a second and core. The profile is kept as JSON, and
    planning again from it (`--set profile=FILE`) measures nothing, also for another machine (`--set machine.cores=64`).
    """
    from regrad.planning.config import PlanConfig

    settings = load_settings(PlanConfig, config, (*overrides, *(["check=true"] if check else [])))
    from regrad.cli.plan import job

    report = job.plan(settings, lambda text: click.echo(printable(text), err=True))
    text = report.as_json().rstrip("\n") if as_json else report.described()
    click.echo(printable_lines(text))
