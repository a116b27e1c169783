"""The report's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from regrad.evaluation.report.entries import ReportEntry
from regrad.evaluation.report.figures import Pictures
from studies.document import Picture, pictures
from studies.lab_report.records import FIRST, OLD, Key, Measured, Table

_BLUE = "#0072b2"
_RED = "#d55e00"
_GREY = "#7f7f7f"


def draw(entries: Mapping[str, Sequence[ReportEntry]], table: Table, measured: Measured) -> list[Picture]:
    """All of them."""
    return pictures("lab-report", _figures(entries, table, measured))


def _figures(
    entries: Mapping[str, Sequence[ReportEntry]], table: Table, measured: Measured
) -> Iterator[tuple[str, str, Figure]]:
    shown = [entry for entry in entries["methods"] if entry.k in (0, 3)]
    yield "methods", "Every method on held-out people, k=3", _bars(shown)
    passages = Pictures(entries["passages"])
    yield "k", "Passages by BM25, held-out people", passages.sweep("people")
    yield "distractors", "The gold passage with random others, held-out people", passages.sweep("gold and random")
    yield "drift", "Documents that are injected, the same questions", _drift(table)
    yield (
        "notes",
        "More text than the context holds (`many`), trained on such notes",
        Pictures(entries["notes"]).sweep("many"),
    )
    yield (
        "domains",
        "Another domain: firms, and people asked of the same starts",
        Pictures(entries["domains"]).scores(3),
    )
    yield "latency", "Milliseconds a question, one at a time, k=3", _latency(measured)


def _bars(entries: Sequence[ReportEntry]) -> Figure:
    """One bar a method, the best on top."""
    shown = sorted(entries, key=lambda entry: entry.value)
    figure = Figure(figsize=(7.6, 0.6 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    values = [100 * entry.value for entry in shown]
    below = [100 * max(0.0, entry.value - entry.low) for entry in shown]
    above = [100 * max(0.0, entry.high - entry.value) for entry in shown]
    colours = [_BLUE if "regrad" in entry.method else _GREY for entry in shown]
    axes.barh(range(len(shown)), values, color=colours)
    axes.set_yticks(range(len(shown)), [entry.method for entry in shown])
    axes.errorbar(values, range(len(shown)), xerr=[below, above], fmt="none", ecolor="#333", elinewidth=1, capsize=2)
    axes.set_xlim(0, 104)
    axes.set_xlabel("exact match, points")
    axes.grid(False, axis="y")
    return figure


def _drift(table: Table) -> Figure:
    """Lines over the number of documents: all questions, and CPT on parts of them."""
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    axes = figure.subplots()
    sets = table.sets("drift")
    counts = [int(name.removeprefix("documents-")) for name in sets]
    lines: list[tuple[str, str, str, list[Key]]] = [
        ("ReGrad", _BLUE, "-", [Key("drift", name, "regrad", 3) for name in sets]),
        ("CPT", _RED, "-", [Key("drift", name, "cpt") for name in sets]),
        ("RAG", _GREY, "-", [Key("drift", name, "rag", 3) for name in sets]),
        ("before any document", _GREY, ":", [Key("drift", name, "direct") for name in sets]),
    ]
    for part, dash, what in ((OLD, ":", "memorised people"), (FIRST, "--", "the first documents")):
        if table.sets(part):
            lines.append((f"CPT, {what}", _RED, dash, [Key(part, name, "cpt") for name in sets]))
    for label, colour, dash, keys in lines:
        heights = [100 * table.mean(key) for key in keys]
        axes.plot(counts, heights, color=colour, linestyle=dash, marker="o", markersize=4, label=label)
    axes.set_xticks(counts)
    axes.set_xlabel("documents")
    axes.set_ylabel("exact match, points")
    axes.set_ylim(0, 104)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _latency(measured: Measured) -> Figure:
    figure = Figure(figsize=(7.6, 2.6), layout="constrained")
    axes: Any = figure.subplots()
    names = list(measured.latency)[::-1]
    values = [median(measured.latency[name]) for name in names]
    axes.barh(names, values, color=[_BLUE if "regrad" in name else _GREY for name in names])
    axes.set_xlabel("milliseconds (median)")
    axes.grid(False, axis="y")
    return figure
