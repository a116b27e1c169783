"""The figures of the real study: differences between rows on the same questions, each with interval and p."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from regrad.evaluation.records import Record
from regrad.evaluation.statistics import Column, Comparison, by_question, compare, corrected

SHOTS = ", 4 shots"


@dataclass(frozen=True)
class Row:
    """One row of one evaluation: a method on a set, at k passages (0: it retrieves nothing)."""

    study: str
    set: str
    method: str
    k: int = 1


@dataclass(frozen=True)
class Wanted:
    """What a figure is the difference of, by which score, and what it has to reach; in points."""

    name: str
    row: Row
    other: Row
    column: Column
    target: float


@dataclass(frozen=True)
class Found:
    """A figure with its test: the comparison's values are from 0 to 1."""

    wanted: Wanted
    comparison: Comparison

    @property
    def points(self) -> float:
        """The difference."""
        return 100 * self.comparison.difference

    @property
    def p(self) -> float:
        """The larger of both tests, after Holm's correction over all figures."""
        return max(self.comparison.holm_t, self.comparison.holm_bootstrap)

    @property
    def met(self) -> bool:
        """Whether the target is reached (and, for one above zero, whether that is no chance)."""
        return self.points >= self.wanted.target and (self.wanted.target <= 0 or self.p < 0.01)


class Table:
    """All records by row."""

    def __init__(self, studies: Mapping[str, Sequence[Record]]) -> None:
        self._rows: dict[Row, list[Record]] = {}
        for study, records in studies.items():
            for record in records:
                self._rows.setdefault(Row(study, record.set, record.method, record.k), []).append(record)

    def scores(self, row: Row, column: Column) -> dict[str, float] | None:
        """By question, the mean over seeds; None if no such row was asked."""
        found = self._rows.get(row)
        return None if found is None else {q: value for (_, q), value in by_question(found, column).items()}

    def mean(self, row: Row, column: Column) -> float | None:
        """Over all questions, from 0 to 1."""
        scores = self.scores(row, column)
        return None if scores is None else fmean(scores.values())

    def best(self, study: str, name: str, column: Column, methods: Sequence[str]) -> str:
        """The method with the highest score of these, at any k."""
        rows = [row for row in self._rows if (row.study, row.set) == (study, name) and row.method in methods]
        return max(rows, key=lambda row: self.mean(row, column) or 0.0).method


def best_prompts(table: Table, held: str) -> dict[str, str]:
    """Which way of asking Direct and RAG is best, by the questions that are kept apart."""
    variants = {"direct": ("direct", f"direct{SHOTS}"), "rag": ("rag", "pe-rag", f"rag{SHOTS}")}
    return {name: table.best("dev", held, "f1", methods) for name, methods in variants.items()}


def figures(table: Table, prompts: Mapping[str, str]) -> list[Found]:
    """All that can be computed of what was asked."""
    pairs = {wanted: pair for wanted in _wanted(prompts) if (pair := _pair(table, wanted))}
    compared = corrected({wanted: compare(*pair) for wanted, pair in pairs.items()})
    return [Found(wanted, comparison) for wanted, comparison in compared.items()]


def _wanted(prompts: Mapping[str, str]) -> Iterator[Wanted]:
    def gold(method: str, k: int = 1) -> Row:
        return Row("gold", "squad_dev", method, k)

    ours, icl = gold("regrad"), gold("regrad+icl")
    other = Row("controls", "another passage", "regrad")
    yield Wanted("f1_regrad_minus_other", ours, other, "f1", 10)
    yield Wanted("f1_regrad_minus_same_article", ours, Row("controls", "same article", "regrad"), "f1", 0)
    yield Wanted("f1_regrad_minus_direct", ours, gold(prompts["direct"], 0), "f1", 10)
    yield Wanted("f1_regrad_minus_ft_direct", ours, gold("ft-direct", 0), "f1", 10)
    yield Wanted("f1_regrad_minus_cpt", ours, Row("controls", "squad_dev", "cpt", 0), "f1", 0)
    yield Wanted("f1_regrad_minus_prag", ours, Row("prag", "squad_dev", "prag"), "f1", 0)
    yield Wanted("f1_regrad_minus_rag", ours, gold(prompts["rag"]), "f1", 0)
    yield Wanted("f1_regrad_icl_minus_rag", icl, gold(prompts["rag"]), "f1", 0)
    yield Wanted("f1_regrad_icl_minus_ft_rag", icl, gold("ft-rag"), "f1", 0)
    codecs = Row("codecs", "squad_dev", "int4")
    yield Wanted("em_int4_minus_bf16", codecs, Row("codecs", "squad_dev", "bf16"), "em", -1)
    yield Wanted("em_conflict_regrad_icl_minus_ft_rag", *_conflict("regrad+icl", "ft-rag"), "em", 0)


def _conflict(method: str, other: str) -> tuple[Row, Row]:
    return Row("gold", "nq_swap_dev", method), Row("gold", "nq_swap_dev", other)


def _pair(table: Table, wanted: Wanted) -> tuple[list[float], list[float]] | None:
    """Both rows' scores of the questions that both answered."""
    mine, theirs = table.scores(wanted.row, wanted.column), table.scores(wanted.other, wanted.column)
    both = [question for question in mine or () if theirs is not None and question in theirs]
    if len(both) < 2 or mine is None or theirs is None:
        return None
    return [mine[question] for question in both], [theirs[question] for question in both]


def to_json(found: Sequence[Found]) -> list[dict[str, Any]]:
    """For report.json."""
    return [
        {
            "name": one.wanted.name,
            "points": one.points,
            "interval": [100 * one.comparison.interval.low, 100 * one.comparison.interval.high],
            "p": one.p,
            "questions": one.comparison.questions,
            "target": one.wanted.target,
            "met": one.met,
        }
        for one in found
    ]
