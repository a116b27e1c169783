"""The figures of a report, drawn with matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from regrad.evaluation.report.entries import ReportEntry

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#bcbd22")
_MARKERS = "osD^vP*Xh"
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # labels are the user's: a dollar sign is a dollar sign
    "svg.hashsalt": "regrad",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
_BAR = 0.8
_MOST_LABEL = 24


class Pictures:
    """Draws entries of one model; a method has the same colour in every picture."""

    def __init__(self, entries: Sequence[ReportEntry]) -> None:
        self._entries = entries
        self._methods = list(dict.fromkeys(entry.method for entry in entries))
        self._sets = list(dict.fromkeys(entry.set for entry in entries))

    def scores(self, k: int) -> Figure:
        """Bars with intervals: every method on every set, at k passages where it retrieves."""
        wide = max(6.4, 2.4 + 0.32 * len(self._methods) * len(self._sets))
        figure = Figure(figsize=(wide, 4.0), layout="constrained")
        axes = figure.subplots()
        width = _BAR / len(self._methods)
        for number, method in enumerate(self._methods):
            shown = [entry for entry in self._entries if entry.method == method and entry.k in (0, k)]
            places = [self._sets.index(entry.set) + (number + 0.5) * width - _BAR / 2 for entry in shown]
            heights = [100 * entry.value for entry in shown]
            axes.bar(places, heights, width * 0.92, color=self._colour(method), label=method)
            axes.errorbar(places, heights, _errors(shown), fmt="none", ecolor="#333", elinewidth=1, capsize=2)
        labels = [name if len(name) <= _MOST_LABEL else f"{name[: _MOST_LABEL - 1]}…" for name in self._sets]
        axes.set_xticks(range(len(self._sets)), labels)
        axes.grid(False, axis="x")
        _finish(figure, axes, "score, points")
        return figure

    def sweep(self, name: str) -> Figure:
        """Lines over k on one set, slightly apart so that all are visible; a method without k is a dashed line."""
        figure = Figure(figsize=(7.6, 4.4), layout="constrained")
        axes = figure.subplots()
        apart = 0.02 * max(entry.k for entry in self._entries)
        for number, method in enumerate(self._methods):
            shown = sorted((e for e in self._entries if e.method == method and e.set == name), key=lambda e: e.k)
            if not shown:
                continue
            heights = [100 * entry.value for entry in shown]
            if shown[0].k == 0:
                axes.axhline(heights[0], color=self._colour(method), linestyle="--", linewidth=1.3, label=method)
                continue
            ks = [entry.k + apart * (number - (len(self._methods) - 1) / 2) for entry in shown]
            line: dict[str, Any] = {
                "color": self._colour(method),
                "marker": self._marker(method),
                "markersize": 5,
                "linewidth": 1.4,
            }
            axes.errorbar(ks, heights, _errors(shown), label=method, elinewidth=0.9, capsize=2, **line)
        axes.set_xticks(sorted({entry.k for entry in self._entries if entry.k}))
        axes.set_xlabel("k, passages of a question")
        _finish(figure, axes, "score, points")
        return figure

    def costs(self, k: int) -> Figure:
        """Score against time, each the mean over the sets."""
        figure = Figure(figsize=(7.6, 4.4), layout="constrained")
        axes = figure.subplots()
        for method in self._methods:
            shown = [entry for entry in self._entries if entry.method == method and entry.k in (0, k)]
            if shown:
                x = fmean(entry.milliseconds for entry in shown)
                y = 100 * fmean(entry.value for entry in shown)
                axes.scatter([x], [y], s=55, color=self._colour(method), marker=self._marker(method), label=method)
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds a question (update and answer, in batches)")
        _finish(figure, axes, "mean score, points")
        return figure

    def _colour(self, method: str) -> str:
        return _COLOURS[self._methods.index(method) % len(_COLOURS)]

    def _marker(self, method: str) -> str:
        return _MARKERS[self._methods.index(method) % len(_MARKERS)]


def style() -> Any:
    """The context that figures are made and written in."""
    return mpl.rc_context(_STYLE)


def encoded(figure: Figure, kind: str) -> bytes:
    """The figure as `svg`, `pdf` or `png`; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(buffer, format=kind, metadata=undated.get(kind), dpi=150)
    return buffer.getvalue()


def _finish(figure: Figure, axes: Any, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_ylim(0, 104)
    axes.set_yticks(range(0, 101, 20))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")


def _errors(shown: Sequence[ReportEntry]) -> list[list[float]]:
    """How far each interval reaches below and above its value."""
    below = [100 * max(0.0, entry.value - entry.low) for entry in shown]
    return [below, [100 * max(0.0, entry.high - entry.value) for entry in shown]]
