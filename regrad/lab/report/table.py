"""All records of the studies, as scores by question: what claims are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from regrad.errors import EvaluationError
from regrad.evaluation.aggregate import by_question
from regrad.evaluation.records import Record

Scores = Mapping[str, float]
"""Exact match by question, the mean over seeds."""


NEW, OLD, FIRST = "drift, new", "drift, memorised", "drift, first documents"
PARTS = {
    NEW: "the documents",
    FIRST: "those that came first",
    OLD: "people whom the base has memorised",
}
"""Parts of the drift study's questions, and what they are about."""


class Key(NamedTuple):
    """One row of a study; `k` is 0 for a method that retrieves nothing."""

    study: str
    set: str
    method: str
    k: int = 0


@dataclass(frozen=True)
class Measured:
    """What one process measured: milliseconds by method, seconds of chunks of questions, bytes of a passage."""

    latency: Mapping[str, Sequence[float]]
    different: int
    alone: Sequence[float]
    together: Sequence[float]
    questions: int
    unchanged: bool
    bytes: Mapping[str, float]
    asked_before: int = 0
    """Questions about people that rivals were trained on, word for word."""


class Table:
    """Scores of every row of every study."""

    def __init__(self, studies: Mapping[str, Iterable[Record]]) -> None:
        groups: dict[Key, list[Record]] = {}
        for study, records in studies.items():
            for record in records:
                groups.setdefault(Key(study, record.set, record.method, record.k), []).append(record)
        self._records = groups
        self._scores = {key: {q: em for (_, q), em in by_question(rows, "em").items()} for key, rows in groups.items()}

    def scores(self, key: Key) -> Scores:
        """Raises `EvaluationError` for a row that no study has."""
        if key not in self._scores:
            raise EvaluationError(f"there are no records of {key.method} on {key.set} at k={key.k} in {key.study}")
        return self._scores[key]

    def mean(self, key: Key) -> float:
        """Exact match over all questions."""
        return fmean(self.scores(key).values())

    def ks(self, study: str, name: str, method: str) -> list[int]:
        """The numbers of passages that a method was asked with on a set, growing."""
        return sorted(key.k for key in self._scores if key[:3] == (study, name, method))

    def methods(self, study: str, name: str, k: int) -> list[Key]:
        """The rows of a set at k, with those that retrieve nothing."""
        return [key for key in self._scores if key[:2] == (study, name) and key.k in (0, k)]

    def sets(self, study: str) -> list[str]:
        """The sets of a study, in their order."""
        return list(dict.fromkeys(key.set for key in self._scores if key.study == study))

    def records(self, key: Key) -> list[Record]:
        """The records behind a row."""
        return self._records.get(key, [])


def average(parts: Sequence[Scores]) -> Scores:
    """By question."""
    return {question: fmean(part[question] for part in parts) for question in parts[0]}


def minus(scores: Scores, others: Scores) -> Scores:
    """By question."""
    return {question: value - others[question] for question, value in scores.items()}
