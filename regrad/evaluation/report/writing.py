"""The report of a run as Markdown, LaTeX, an HTML page and one JSON, with its figures."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from regrad.errors import EvaluationError
from regrad.evaluation.output import Output, Planned
from regrad.evaluation.report import figures
from regrad.evaluation.report.entries import ReportEntry, gather
from regrad.evaluation.report.tables import CellText, Grid, Sign, cost_grid, detail_grid, reader_grid, score_grid

_TITLE = "Evaluation"
_MARKDOWN_SIGNS: dict[Sign, str] = {"": "", "+": " ▲", "-": " ▼"}
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]|#~])")
_LATEX_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
_LATEX_SIGNS: dict[Sign, str] = {"": "", "+": r"$^{+}$", "-": r"$^{-}$"}
_LATEX_SPECIAL = {
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


def write_report(output: Output, planned: Planned | None = None) -> str:
    """Write the report of a plan (by default the last run's); returns one line that says where it is.

    Raises `EvaluationError` if no cell is done.
    """
    planned = planned or output.planned()
    entries = gather(output, planned)
    if not entries:
        raise EvaluationError(
            f"no cell of the run at {output.storage.uri} is done yet; run `regrad eval`",
            code="no_cell_done",
            uri=output.storage.uri,
        )
    facts = list(_facts(planned, entries))
    grids = _grids(planned, entries)
    drawn = []
    with figures.style():
        for name, caption, figure in _figures(planned, entries):
            svg = figures.encoded(figure, "svg")
            output.storage.write(f"figures/{name}.svg", svg)
            output.storage.write(f"figures/{name}.pdf", figures.encoded(figure, "pdf"))
            drawn.append((name, caption, svg))
    places = {kind: [(caption, f"figures/{name}.{kind}") for name, caption, _ in drawn] for kind in ("svg", "pdf")}
    left_out = {"by_question", "devices"}
    rows = [{key: value for key, value in asdict(entry).items() if key not in left_out} for entry in entries]
    files = {
        "report.md": markdown(_TITLE, facts, grids, places["svg"]),
        "report.tex": latex(grids, places["pdf"]),
        "report.html": page(_TITLE, facts, grids, [(caption, svg) for _, caption, svg in drawn]),
        "report.json": json.dumps(rows, indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in files.items():
        output.storage.write(name, text.encode())
    return f"report at {output.storage.uri}/report.html (and .md, .tex, .json)"


def _facts(planned: Planned, entries: Sequence[ReportEntry]) -> Iterator[str]:
    left = len(planned.cells) - sum(entry.seeds for entry in entries)
    sets = {entry.set: entry.questions for entry in entries}
    methods = len({entry.method for entry in entries})
    counted = ", ".join(f"{name} ({count} questions)" for name, count in sets.items())
    yield f"{methods} methods on {counted}; greedy decoding."
    if left:
        yield f"{left} of {len(planned.cells)} cells are not done yet: the same command continues with them."
    for entry in entries:
        if entry.noted:
            yield f"{entry.method}, k={entry.k}, {entry.set}: {entry.noted} answers have a note in their records."


def _grids(planned: Planned, entries: Sequence[ReportEntry]) -> list[Grid]:
    models = list(dict.fromkeys(entry.model for entry in entries))
    grids = []
    for model in models:
        title = f"Scores, {model}" if len(models) > 1 else "Scores"
        ours = [entry for entry in entries if entry.model == model]
        grids.append(score_grid(title, ours, planned.metric, planned.compare_to))
    grids.append(detail_grid(entries, planned.compare_to))
    if any(entry.readers for entry in entries):
        grids.append(reader_grid(entries))
    return [*grids, cost_grid(entries)]


def _figures(planned: Planned, entries: Sequence[ReportEntry]) -> Iterator[tuple[str, str, Figure]]:
    """(file name, caption, figure) of each."""
    # Files are numbered: a user's name of a model or a set may be no file name.
    models = list(dict.fromkeys(entry.model for entry in entries))
    k = planned.k[0]
    for number, model in enumerate(models):
        ours = [entry for entry in entries if entry.model == model]
        pictures = figures.Pictures(ours)
        of = f", {model}" if len(models) > 1 else ""
        yield f"scores-{number}", f"Scores at k={k}{of}", pictures.scores(k)
        if len(planned.k) > 1:
            for place, name in enumerate(dict.fromkeys(entry.set for entry in ours)):
                yield f"sweep-{number}-{place}", f"Scores over k: {name}{of}", pictures.sweep(name)
        yield f"costs-{number}", f"Scores against time at k={k}{of}", pictures.costs(k)


def markdown(title: str, facts: Sequence[str], grids: Sequence[Grid], figures: Sequence[tuple[str, str]]) -> str:
    """The report in Markdown; `figures` are (caption, path from the report)."""
    parts = [f"# {escape_markdown(title)}", *(escape_markdown(fact) for fact in facts)]
    for grid in grids:
        parts += [f"## {escape_markdown(grid.title)}", "\n".join(table_lines(grid)), escape_markdown(grid.note)]
    for caption, path in figures:
        parts += [f"## {escape_markdown(caption)}", f"![{escape_markdown(caption)}]({path})"]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _MARKDOWN_SPECIAL.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def table_lines(grid: Grid) -> Iterator[str]:
    """One table in Markdown, line by line."""

    def cell(content: CellText) -> str:
        text = escape_markdown(content.text)
        text = f"**{text}**" if content.strong and text else text
        return text + _MARKDOWN_SIGNS[content.sign] + (f" {escape_markdown(content.detail)}" if content.detail else "")

    aligned = ["---" if number < grid.names else "---:" for number in range(len(grid.head))]
    for row in ([*map(escape_markdown, grid.head)], aligned, *([*map(cell, row)] for row in grid.rows)):
        yield f"| {' | '.join(row)} |"


def latex(grids: Sequence[Grid], figures: Sequence[tuple[str, str]]) -> str:
    """Tables and figures for \\input in a paper; `figures` are (caption, path from the report)."""
    parts = [_latex_table(grid) for grid in grids]
    for caption, path in figures:
        parts.append(_latex_float("figure", [rf"\includegraphics[width=\linewidth]{{{path}}}"], caption))
    return "% Needs \\usepackage{booktabs,graphicx}\n" + "\n".join(parts)


def escape_latex(text: str) -> str:
    """Text that LaTeX shows as it is, on one line."""
    return "".join(_LATEX_SPECIAL.get(char, char) for char in " ".join(text.split()))


def _latex_table(grid: Grid) -> str:
    def row(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\"

    def cell(content: CellText) -> str:
        text = escape_latex(content.text)
        text = rf"\textbf{{{text}}}" if content.strong and text else text
        detail = rf" {{\scriptsize {escape_latex(content.detail)}}}" if content.detail else ""
        return text + _LATEX_SIGNS[content.sign] + detail

    columns = "l" * grid.names + "r" * (len(grid.head) - grid.names)
    head = [_LATEX_FIT, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", row(map(escape_latex, grid.head)), r"\midrule"]
    rows = [row(map(cell, each)) for each in grid.rows]
    return _latex_float("table", [*head, *rows, r"\bottomrule", r"\end{tabular}}"], f"{grid.title}. {grid.note}")


def _latex_float(kind: str, body: Sequence[str], caption: str) -> str:
    inside = [r"\centering", *body, rf"\caption{{{escape_latex(caption.strip())}}}"]
    return "\n".join([rf"\begin{{{kind}}}", *inside, rf"\end{{{kind}}}", ""])


def page(title: str, facts: Sequence[str], grids: Sequence[Grid], figures: Sequence[tuple[str, bytes]]) -> str:
    """The report as one HTML file; `figures` are (caption, SVG)."""
    loader = PackageLoader("regrad.evaluation.report", "")
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html")
    # As images, in which a browser never runs anything.
    images = [(caption, f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}") for caption, svg in figures]
    return template.render(title=title, facts=facts, grids=grids, figures=images)
