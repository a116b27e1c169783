"""A row of the table: what was compared, how many cases, and the largest difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Row:
    """`largest` is absolute, `relative` as `measure` says; `shipped` is the same of the library's own defaults."""

    comparison: str
    cases: int | str = ""
    largest: float | None = None
    relative: float | None = None
    measure: str = ""
    shipped: float | None = None
    note: str = ""

    def shown(self) -> dict[str, Any]:
        """For the printed table and the JSON file."""
        return {
            "comparison": self.comparison,
            "cases": self.cases,
            "largest difference": _or_blank(self.largest),
            "relative": _or_blank(self.relative),
            "measure": self.measure,
            "with regrad's defaults": _or_blank(self.shipped),
            "note": self.note,
        }


def skipped(comparison: str, reason: str) -> Row:
    """A row without numbers, and why."""
    return Row(comparison, note=f"skipped: {reason}")


def of_largest(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """The largest difference of a number, and that over the largest number."""
    largest = float((ours - theirs).abs().max())
    return largest, largest / max(float(theirs.abs().max()), 1e-30)


def of_norms(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference over the norm."""
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))


def _or_blank(value: float | None) -> float | str:
    return "" if value is None else value
