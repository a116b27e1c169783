"""The tables as LaTeX, to be put into a paper with \\input: they need the packages booktabs and graphicx."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from regrad.evaluation.report.tables import Grid, Sign, Text

_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
_SIGNS: dict[Sign, str] = {"": "", "+": r"$^{+}$", "-": r"$^{-}$"}
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "▲": r"$^{+}$",
    "▼": r"$^{-}$",
    "–": "--",
    "φ": r"$\phi$",
    **{char: f"\\{char}" for char in "#$%&_{}"},
}


def latex(grids: Sequence[Grid], figures: Sequence[tuple[str, str]]) -> str:
    """All tables and figures; `figures` are (caption, path from the report)."""
    parts = [_table(grid) for grid in grids]
    parts += [_float("figure", [rf"\includegraphics[width=\linewidth]{{{path}}}"], text) for text, path in figures]
    return "% Needs \\usepackage{booktabs,graphicx}\n" + "\n".join(parts)


def escape(text: str) -> str:
    """Text that LaTeX shows as it is, on one line."""
    return "".join(_SPECIAL.get(char, char) for char in " ".join(text.split()))


def _table(grid: Grid) -> str:
    columns = "l" * grid.names + "r" * (len(grid.head) - grid.names)
    rows = [_row(map(_cell, row)) for row in grid.rows]
    body = [_FIT, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row(map(escape, grid.head)), r"\midrule"]
    return _float("table", [*body, *rows, r"\bottomrule", r"\end{tabular}}"], f"{grid.title}. {grid.note}")


def _float(kind: str, body: Sequence[str], caption: str) -> str:
    inside = [r"\centering", *body, rf"\caption{{{escape(caption.strip())}}}"]
    return "\n".join([rf"\begin{{{kind}}}", *inside, rf"\end{{{kind}}}", ""])


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Text) -> str:
    text = escape(cell.text)
    text = rf"\textbf{{{text}}}" if cell.strong and text else text
    return text + _SIGNS[cell.sign] + (rf" {{\scriptsize {escape(cell.detail)}}}" if cell.detail else "")
