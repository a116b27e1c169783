"""The nine claims of the paper, from the records. Every number and every reason is computed; none is written here."""

from __future__ import annotations

from regrad.lab.report.change import domains, drift
from regrad.lab.report.claims import Claim, settle
from regrad.lab.report.passages import distractors, inverted_u
from regrad.lab.report.quality import best_without_prompt, random_passages, raw_gradients
from regrad.lab.report.speed import batches, latency
from regrad.lab.report.table import Measured, Table


def nine_claims(table: Table, measured: Measured) -> list[Claim]:
    """All of them, corrected for their number."""
    return settle(
        [
            best_without_prompt(table, measured.asked_before),
            *(raw_gradients(table), random_passages(table), inverted_u(table), distractors(table)),
            *(drift(table), domains(table), latency(table, measured), batches(measured)),
        ]
    )
