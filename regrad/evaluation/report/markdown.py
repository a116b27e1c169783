"""The report as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from regrad.evaluation.report.tables import Grid, Sign, Text

SIGNS: dict[Sign, str] = {"": "", "+": " ▲", "-": " ▼"}
_SPECIAL = re.compile(r"([\\`*_\[\]|#~])")


def markdown(title: str, facts: Sequence[str], grids: Sequence[Grid], figures: Sequence[tuple[str, str]]) -> str:
    """All of it; `figures` are (caption, path from the report)."""
    parts = [f"# {escape(title)}", *(escape(fact) for fact in facts)]
    for grid in grids:
        parts += [f"## {escape(grid.title)}", "\n".join(table_lines(grid)), escape(grid.note)]
    for caption, path in figures:
        parts += [f"## {escape(caption)}", f"![{escape(caption)}]({path})"]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def table_lines(grid: Grid) -> Iterator[str]:
    """One table."""
    yield _row(escape(name) for name in grid.head)
    yield _row("---" if number < grid.names else "---:" for number in range(len(grid.head)))
    for row in grid.rows:
        yield _row(map(_cell, row))


def _row(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Text) -> str:
    text = escape(cell.text)
    text = f"**{text}**" if cell.strong and text else text
    return text + SIGNS[cell.sign] + (f" {escape(cell.detail)}" if cell.detail else "")
