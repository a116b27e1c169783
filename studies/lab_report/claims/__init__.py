"""The nine claims of the paper, from the records. Every number and every reason is computed; none is written here."""

from __future__ import annotations

from studies.lab_report.claims.change import domains, drift
from studies.lab_report.claims.claim import Claim, corrected
from studies.lab_report.claims.cost import batches, latency
from studies.lab_report.claims.passages import distractors, inverted_u
from studies.lab_report.claims.quality import best_without_prompt, random_passages, raw_gradients
from studies.lab_report.records import Measured, Table


def paper_claims(table: Table, measured: Measured) -> list[Claim]:
    """All of them, corrected for their number."""
    return corrected(
        [
            best_without_prompt(table, measured.asked_before),
            raw_gradients(table),
            random_passages(table),
            inverted_u(table),
            distractors(table),
            drift(table),
            domains(table),
            latency(table, measured),
            batches(measured),
        ]
    )
