"""Writing the report of a run: Markdown, LaTeX, an HTML page, figures and one JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from regrad.errors import EvaluationError
from regrad.evaluation.output import Output, Planned
from regrad.evaluation.report import figures
from regrad.evaluation.report.entries import Entry, gather
from regrad.evaluation.report.latex import latex
from regrad.evaluation.report.markdown import markdown
from regrad.evaluation.report.tables import Grid, cost_grid, detail_grid, score_grid


def page(title: str, facts: Sequence[str], grids: Sequence[Grid], figures: Sequence[tuple[str, bytes]]) -> str:
    """All of it; `figures` are (caption, SVG), which stand in it as images, in which nothing is ever run."""
    loader = PackageLoader("regrad.evaluation.report", "")
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html")
    images = [(caption, f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}") for caption, svg in figures]
    return template.render(title=title, facts=facts, grids=grids, figures=images)


_TITLE = "Evaluation"


def write_report(output: Output, planned: Planned | None = None) -> str:
    """Write that of a plan (the last run's by default); returns one line saying where.

    Raises `EvaluationError` if no cell is done.
    """
    planned = planned or output.planned()
    entries = gather(output, planned)
    if not entries:
        raise EvaluationError(f"no cell of the run at {output.storage.uri} is done yet; run `regrad eval`")
    facts, grids = list(_facts(planned, entries)), _grids(planned, entries)
    drawn = _draw(output, planned, entries)
    places = {kind: [(caption, f"figures/{name}.{kind}") for name, caption, _ in drawn] for kind in ("svg", "pdf")}
    files = {
        "report.md": markdown(_TITLE, facts, grids, places["svg"]),
        "report.tex": latex(grids, places["pdf"]),
        "report.html": page(_TITLE, facts, grids, [(caption, svg) for _, caption, svg in drawn]),
        "report.json": json.dumps([_row(entry) for entry in entries], indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in files.items():
        output.storage.write(name, text.encode())
    return f"report at {output.storage.uri}/report.html (and .md, .tex, .json)"


def _facts(planned: Planned, entries: Sequence[Entry]) -> Iterator[str]:
    there = sum(entry.seeds for entry in entries)
    sets = {entry.set: entry.questions for entry in entries}
    methods = len({entry.method for entry in entries})
    counted = ", ".join(f"{name} ({count} questions)" for name, count in sets.items())
    yield f"{methods} methods on {counted}; greedy decoding."
    if there < len(planned.cells):
        yield f"{len(planned.cells) - there} of {len(planned.cells)} cells are not done yet: the same command goes on."
    for entry in entries:
        if entry.noted:
            yield f"{entry.method}, k={entry.k}, {entry.set}: {entry.noted} answers have a note in their records."


def _grids(planned: Planned, entries: Sequence[Entry]) -> list[Grid]:
    models = list(dict.fromkeys(entry.model for entry in entries))
    grids = []
    for model in models:
        title = f"Scores, {model}" if len(models) > 1 else "Scores"
        ours = [entry for entry in entries if entry.model == model]
        grids.append(score_grid(title, ours, planned.metric, planned.compare_to))
    return [*grids, detail_grid(entries, planned.compare_to), cost_grid(entries)]


def _draw(output: Output, planned: Planned, entries: Sequence[Entry]) -> list[tuple[str, str, bytes]]:
    """(file name, caption, SVG) of every figure; they are written as SVG and PDF."""
    drawn = []
    with figures.style():
        for name, caption, figure in _figures(planned, entries):
            svg = figures.encoded(figure, "svg")
            output.storage.write(f"figures/{name}.svg", svg)
            output.storage.write(f"figures/{name}.pdf", figures.encoded(figure, "pdf"))
            drawn.append((name, caption, svg))
    return drawn


def _figures(planned: Planned, entries: Sequence[Entry]) -> Iterator[tuple[str, str, Figure]]:
    """Names are numbers: what a user calls a model or a set is no file name."""
    models, k = list(dict.fromkeys(entry.model for entry in entries)), planned.k[0]
    for number, model in enumerate(models):
        ours = [entry for entry in entries if entry.model == model]
        pictures, of = figures.Pictures(ours), f", {model}" if len(models) > 1 else ""
        yield f"scores-{number}", f"Scores at k={k}{of}", pictures.scores(k)
        if len(planned.k) > 1:
            for place, name in enumerate(dict.fromkeys(entry.set for entry in ours)):
                yield f"sweep-{number}-{place}", f"Scores over k: {name}{of}", pictures.sweep(name)
        yield f"costs-{number}", f"Scores against time at k={k}{of}", pictures.costs(k)


def _row(entry: Entry) -> dict[str, Any]:
    left_out = {"by_question", "devices"}
    return {key: value for key, value in asdict(entry).items() if key not in left_out}
