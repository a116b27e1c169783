"""A claim, the parts that it rests on with their tests, and its verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from regrad.errors import EvaluationError
from regrad.evaluation.statistics import Comparison, Interval, compare, holm

ALPHA = 0.05
K = 3
"""Passages of a question where a claim says nothing of them."""
MARGINAL = 0.05
"""What counts as a marginal difference of exact match."""

Unit = Literal["points", "ratio", "count"]


@dataclass(frozen=True)
class Part:
    """One thing that must hold. `p` is of a paired test that it does not; None for a count that needs no test."""

    text: str
    value: float
    interval: Interval | None
    p: float | None
    direction: bool
    """Whether what was found is on the right side at all."""
    unit: Unit = "points"

    @property
    def holds(self) -> bool:
        """By itself, before any correction."""
        return self.direction and (self.p is None or self.p < ALPHA)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper. It is reproduced if all its parts are on the right side and its p is small enough.

    `p` is the largest of its parts' (all must hold), after Holm's correction over all claims (see `corrected`).
    """

    id: int
    statement: str
    measure: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    adjusted: float | None = None

    @property
    def main(self) -> Part:
        """The part whose number stands for the claim."""
        return self.parts[0]

    @property
    def raw_p(self) -> float:
        """Before the correction; 1 if a part is on the wrong side, so that no p speaks for it."""
        if not all(part.direction for part in self.parts):
            return 1.0
        return max((part.p for part in self.parts if part.p is not None), default=1.0)

    @property
    def p(self) -> float:
        """After the correction."""
        return self.raw_p if self.adjusted is None else self.adjusted

    @property
    def reproduced(self) -> bool:
        """The verdict."""
        return self.p < ALPHA

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "id": self.id,
            "statement": self.statement,
            "measure": self.measure,
            "unit": self.main.unit,
            "value": self.main.value,
            "interval": list(self.main.interval) if self.main.interval else None,
            "p": self.p,
            "reproduced": self.reproduced,
            "parts": [
                {
                    "text": part.text,
                    "value": part.value,
                    "interval": list(part.interval) if part.interval else None,
                    "p": part.p,
                    "holds": part.holds,
                }
                for part in self.parts
            ],
            "notes": list(self.notes),
        }


def corrected(claims: Sequence[Claim]) -> list[Claim]:
    """The claims with Holm's correction over all of them."""
    return [replace(claim, adjusted=p) for claim, p in zip(claims, holm([c.raw_p for c in claims]), strict=True)]


def more(text: str, scores: Mapping[str, float], others: Mapping[str, float], tries: int = 1) -> Part:
    """That the first is higher, in points; `tries` is from how many it was picked as the highest (Bonferroni)."""
    found = _compared(scores, others)
    return Part(text, 100 * found.difference, _scaled(found.interval, 100), _p(found, tries), found.difference > 0)


def less_than(text: str, scores: Mapping[str, float], others: Mapping[str, float], margin: float) -> Part:
    """That the first is higher by less than a margin (from 0 to 1), if at all; the value is how much higher it is."""
    plain = _compared(scores, others)
    found = _compared({q: value + margin for q, value in others.items()}, scores)
    return Part(text, 100 * plain.difference, _scaled(plain.interval, 100), _p(found), found.difference > 0)


def ratio_below(text: str, values: Sequence[float], others: Sequence[float], limit: float) -> Part:
    """That the first takes less than `limit` times the second, question by question (geometric mean)."""
    logs = [math.log(a / b) for a, b in zip(values, others, strict=True)]
    plain = compare(logs, [0.0] * len(logs))
    found = compare([math.log(limit)] * len(logs), logs)
    return Part(text, math.exp(plain.difference), _exp(plain.interval), _p(found), found.difference > 0, "ratio")


def ratio_above(text: str, values: Sequence[float], others: Sequence[float], limit: float = 1.0) -> Part:
    """That the first takes more than `limit` times the second."""
    logs = [math.log(a / b) for a, b in zip(values, others, strict=True)]
    plain = compare(logs, [0.0] * len(logs))
    found = compare(logs, [math.log(limit)] * len(logs))
    return Part(text, math.exp(plain.difference), _exp(plain.interval), _p(found), found.difference > 0, "ratio")


def fact(text: str, value: float, holds: bool) -> Part:
    """Something that is counted and not tested."""
    return Part(text, value, None, None, holds, "count")


def _compared(scores: Mapping[str, float], others: Mapping[str, float]) -> Comparison:
    if scores.keys() != others.keys():
        raise EvaluationError("two rows of a claim did not answer the same questions", code="different_questions")
    return compare([scores[q] for q in scores], [others[q] for q in scores])


def _p(found: Comparison, tries: int = 1) -> float:
    """Both tests must show it."""
    return min(1.0, tries * max(found.p_t, found.p_bootstrap))


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(factor * interval.low, factor * interval.high)


def _exp(interval: Interval) -> Interval:
    return Interval(math.exp(interval.low), math.exp(interval.high))
