"""What else the report says of the records: where RAG wins, and how much several gradients cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from regrad.evaluation.statistics import Comparison, compare, corrected
from studies.lab_report.claims.claim import ALPHA
from studies.lab_report.records import Key, Table

OURS = ("regrad", "regrad+icl", "regrad, relative", "trained on people", "continued on both", "continued on firms")
RAGS = ("rag", "ft-rag")
BY_RANK = ("first", "decayed", "softmax", "relative", "proportional", "orthogonal")
"""Merges that go by scores or order: here BM25's first passage is the right one, so they have k=1 again."""


@dataclass(frozen=True)
class Duel:
    """RAG and the best of ReGrad's rows on the same questions with as many passages."""

    rag: Key
    ours: Key
    comparison: Comparison

    @property
    def p(self) -> float:
        """Of both tests the larger, after the correction over all duels."""
        return max(self.comparison.holm_t, self.comparison.holm_bootstrap)

    @property
    def verdict(self) -> str:
        """Who wins."""
        if self.p >= ALPHA:
            return "neither"
        return "RAG" if self.comparison.difference > 0 else "ReGrad"


def duels(table: Table, studies: tuple[str, ...] = ("passages", "domains", "hard", "notes")) -> list[Duel]:
    """Every set and k of these studies."""
    pairs = dict(_pairs(table, studies))
    found = {}
    for rag, ours in pairs.items():
        theirs = table.scores(rag)
        mine = table.scores(ours)
        found[rag] = compare([theirs[q] for q in theirs], [mine[q] for q in theirs])
    return [Duel(rag, pairs[rag], comparison) for rag, comparison in corrected(found).items()]


def _pairs(table: Table, studies: tuple[str, ...]) -> Iterator[tuple[Key, Key]]:
    for study in studies:
        for name in table.sets(study):
            for rag, k in [(row, k) for row in RAGS for k in table.ks(study, name, row)]:
                ours = [key for key in table.methods(study, name, k) if key.method in OURS]
                if ours:
                    yield Key(study, name, rag, k), max(ours, key=table.mean)


def gaps(table: Table) -> dict[str, Any]:
    """Points of exact match between k=1 and k=3 or 5, the gold passage among them.

    Of the merge with the smallest gaps together among those that look at no score or rank, and of the paper's sum.
    """
    found: dict[str, Any] = {}
    merges = [key.method for key in table.methods("merges", "people", 1)]
    by_merge = {merge: _gaps(table, merge) for merge in merges}
    best = min((m for m in merges if m not in BY_RANK), key=lambda m: sum(by_merge[m].values()))
    found["gap_variant"] = best
    for label, merge in (("", best), ("_sum", "sum"), ("_relative", "relative")):
        if merge in by_merge:
            found |= {f"k{k}_gap{label}": gap for k, gap in by_merge[merge].items()}
    return found


def _gaps(table: Table, merge: str) -> dict[int, float]:
    alone = table.mean(Key("merges", "people", merge, 1))
    return {k: 100 * (alone - table.mean(Key("merges", "people", merge, k))) for k in (3, 5)}
