"""Words and numbers that several claims use."""

from __future__ import annotations

from collections.abc import Sequence

from regrad.lab.report.table import Key, Table

K = 3
"""Passages of a question where a claim says nothing of them."""
MARGINAL = 0.05
"""What counts as a marginal difference of exact match."""


def points(table: Table, key: Key) -> str:
    """Exact match of a row."""
    return f"{100 * table.mean(key):.1f}"


def curve(table: Table, keys: Sequence[Key]) -> str:
    """Rows that differ in k."""
    return ", ".join(f"k={key.k} {points(table, key)}" for key in keys)


def line(table: Table, keys: Sequence[Key]) -> str:
    """Rows that differ in their set."""
    return ", ".join(f"{key.set} {points(table, key)}" for key in keys)
