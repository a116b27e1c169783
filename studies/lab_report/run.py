"""The whole report: its steps, and then the document from what they left."""

from __future__ import annotations

from collections.abc import Callable

from studies.lab_report.config import LabReportConfig
from studies.lab_report.plan import make_steps
from studies.lab_report.report import write_report
from studies.running import run_steps


def run_report(config: LabReportConfig, say: Callable[[str], None]) -> str:
    """Run what is missing and write the report; returns one line saying where."""
    return write_report(config, run_steps(make_steps(config), config.output, config.cluster.workers, say))
