"""report.json, the document and its figures, from the records and measurements of a report's directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regrad.evaluation.report.entries import ReportEntry
from studies.document import REPORT, hardware, write_document, write_numbers
from studies.lab_report.claims import paper_claims
from studies.lab_report.config import LabReportConfig
from studies.lab_report.figures import draw
from studies.lab_report.findings import duels, gaps
from studies.lab_report.plan import make_steps
from studies.lab_report.records import read_entries, read_measured, read_table
from studies.lab_report.text import Report, document
from studies.running import run_steps

_DOCUMENT = "lab-report.md"
_ENOUGH_SEEDS = 3
_LEFT_OUT = {"by_question", "devices", "against", "closed"}


def run_report(config: LabReportConfig, say: Callable[[str], None]) -> str:
    """Run what is missing and write the report; returns one line saying where."""
    return write_report(config, run_steps(make_steps(config), config.output, config.cluster.workers, say))


def write_report(config: LabReportConfig, seconds: float) -> str:
    """Write everything; returns one line saying where and what came out."""
    table = read_table(config)
    entries = read_entries(config)
    measured = read_measured(config)
    report = Report(
        claims=paper_claims(table, measured),
        entries=entries,
        duels=duels(table),
        gaps=gaps(table),
        measured=measured,
        hardware=hardware(),
        seconds=seconds,
        seeds=config.seeds,
        quick=_quick(config),
    )
    place = report_place(config)
    drawn = draw(entries, table, measured)
    write_document(place, document(report, drawn), drawn)
    write_numbers(config.output, _numbers(report))
    true = sum(claim.reproduced for claim in report.claims)
    return f"{true} of {len(report.claims)} claims reproduced; report at {place}, numbers at {config.output}/{REPORT}"


def report_place(config: LabReportConfig) -> str:
    """Where the document goes: as configured, or into `docs` of a checkout of regrad, else below the output.

    A quick run, or one with fewer than three seeds, does not replace the checkout's report.
    """
    if config.report is not None:
        return config.report
    here = Path.cwd()
    checkout = (here / "studies" / "lab_report").is_dir() and (here / "docs").is_dir()
    if checkout and not _quick(config):
        return str(here / "docs" / _DOCUMENT)
    return f"{config.output}/{_DOCUMENT}"


def _quick(config: LabReportConfig) -> bool:
    return config.quick or len(config.seeds) < _ENOUGH_SEEDS


def _numbers(report: Report) -> dict[str, Any]:
    return {
        "claims": [claim.to_json() for claim in report.claims],
        "figures": dict(report.gaps),
        "rows": [_row(study, entry) for study, entries in report.entries.items() for entry in entries],
        "duels": [
            {
                **duel.rag._asdict(),
                "ours": duel.ours.method,
                "rag_lead": 100 * duel.comparison.difference,
                "better": duel.verdict,
            }
            for duel in report.duels
        ],
        "measured": asdict(report.measured),
        "hardware": report.hardware,
        "seeds": list(report.seeds),
        "seconds": round(report.seconds, 1),
    }


def _row(study: str, entry: ReportEntry) -> dict[str, Any]:
    return {"study": study} | {key: value for key, value in asdict(entry).items() if key not in _LEFT_OUT}
