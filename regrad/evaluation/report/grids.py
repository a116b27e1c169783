"""Tables as text, before it is decided what they are written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sign = Literal["", "+", "-"]
"""Significantly better, or worse, than the method that others are compared to."""

UNKNOWN = "-"


@dataclass(frozen=True)
class Text:
    """What stands in a table's cell."""

    text: str
    detail: str = ""
    strong: bool = False
    sign: Sign = ""


@dataclass(frozen=True)
class Grid:
    """A table: its first `names` columns are words, the others numbers."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    names: int = 1


def percent(value: float) -> str:
    """A score from 0 to 1 in points."""
    return f"{100 * value:.1f}"


def interval(low: float, high: float) -> str:
    """An interval of scores in points."""
    return f"[{percent(low)}, {percent(high)}]"


def chance(p: float) -> str:
    """A p value."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def number(value: float | None) -> str:
    """A measured number with three digits, or a dash."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def size(value: float | None) -> str:
    """Bytes, or a dash."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
