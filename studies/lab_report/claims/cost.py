"""Claims 8 and 9: what it costs, and batches."""

from __future__ import annotations

from statistics import fmean

from studies.lab_report.claims.claim import Claim, K, fact, ratio_above, ratio_below
from studies.lab_report.records import Key, Measured, Table

LITTLE = 1.3
"""What counts as little latency: the paper's own cached ReGrad takes 1.09 to 1.26 times as long as Direct."""


def latency(table: Table, measured: Measured) -> Claim:
    """Claim 8."""
    ms = measured.latency
    fetched = sum(r.bytes_fetched for r in table.records(Key("methods", "people", "regrad-online", K)))
    parts = (
        ratio_below(f"cached over Direct, below {LITTLE}", ms["regrad"], ms["direct"], LITTLE),
        ratio_above("Online over cached", ms["regrad-online"], ms["regrad"]),
        fact("bytes that Online fetched from a bank", fetched, fetched == 0),
    )
    means = ", ".join(f"{name} {fmean(values):.1f}" for name, values in ms.items())
    notes = [
        f"Milliseconds a question, one at a time, eight new tokens, without retrieval: {means}. At this size of model "
        "the adapter is a large part of it; docs/benchmarks.md has the ratio at the shape of a 1B model."
    ]
    return Claim(
        8,
        "Cached ReGrad adds little latency over Direct; Online costs more and stores nothing.",
        f"time of cached ReGrad over that of Direct, k={K}",
        parts,
        tuple(notes),
    )


def batches(measured: Measured) -> Claim:
    """Claim 9."""
    parts = (
        ratio_above("time one by one over time in batches", measured.alone, measured.together),
        fact(f"answers of {measured.questions} that differ", measured.different, measured.different == 0),
    )
    return Claim(
        9,
        "Questions can be batched although each has its own update.",
        "questions a second in batches over those one by one, fetching and adding atoms included",
        parts,
    )
