"""What the rows say: means with intervals over seeds, and the sentences of the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from studies.rag_gd.plan import Row

CLOSE = 0.1
"""A root mean square difference below a tenth of the constructed predictions' own size is called close."""


@dataclass(frozen=True)
class Mean:
    """Over seeds: every value, their mean, and the 95 % interval by Student's t; without an interval for one seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the values."""
        return fmean(self.values)

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        count = len(self.values)
        if count < 2:
            return None
        return float(stats.t.ppf(0.975, count - 1) * stdev(self.values) / count**0.5)

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"


def over_seeds(rows: Sequence[Row], key: str, **chosen: Any) -> Mean:
    """The values of a figure in the rows that have these settings, one a row."""
    return Mean(tuple(float(row[key]) for row in choose(rows, **chosen)))


def choose(rows: Sequence[Row], **chosen: Any) -> list[Row]:
    """The rows that have these settings."""
    return [row for row in rows if all(row.get(name) == value for name, value in chosen.items())]


def distinct(rows: Sequence[Row], key: str) -> list[Any]:
    """The values of a setting, in the rows' order."""
    return list(dict.fromkeys(row[key] for row in rows))


def verdict(rows: Sequence[Row]) -> Iterator[str]:
    """One sentence for each question of the study, with its numbers; no number is written by hand."""
    for part in ("projection", "dot-product"):
        cells = choose(rows, part=part, reach=1.0)
        spread = [(over_seeds(cells, "relative", documents=n), n) for n in distinct(cells, "documents")]
        cosine = over_seeds(cells, "cosine")
        figures = ", ".join(f"{mean} with {n}" for mean, n in spread)
        held = [n for mean, n in spread if mean.mean <= CLOSE]
        yield (
            f"**One layer, {part}: {_held(held, [n for _, n in spread], 'documents')}** Relative difference {figures} "
            f"documents; mean cosine of sensitivities {cosine.mean:.3f}. {_errors(cells, part == 'dot-product')}"
        )
        low, high = (over_seeds(choose(rows, part=part), "difference", reach=a) for a in _ends(rows, part))
        first, last = _ends(rows, part)
        yield (
            f"**Inputs beyond the training range, {part}:** the difference of predictions goes from {low.mean:.3f} at "
            f"a = {first} to {high.mean:.3f} at a = {last} (over all numbers of documents). One layer is linear in the "
            "query's token, trained or constructed: that the difference grows with a is so by construction."
        )
    yield from _stacked(rows)
    yield from _tabular(rows)


def _stacked(rows: Sequence[Row]) -> Iterator[str]:
    cells = choose(rows, part="stacked")
    for depth in distinct(cells, "depth"):
        of_depth = choose(cells, depth=depth)
        counts = distinct(of_depth, "documents")
        means = [(over_seeds(of_depth, "relative", documents=n), n) for n in counts]
        held = [n for mean, n in means if mean.mean <= CLOSE]
        figures = ", ".join(f"{mean} with {n}" for mean, n in means)
        yield (
            f"**Depth {depth}, shared weights: {_held(held, counts, 'documents')}** Relative difference {figures} "
            f"documents; mean cosine {over_seeds(of_depth, 'cosine').mean:.3f}. {_errors(of_depth)}"
        )


def _tabular(rows: Sequence[Row]) -> Iterator[str]:
    cells = choose(rows, part="tabular")
    for name in distinct(cells, "set"):
        of_set = choose(cells, set=name)
        kinds = distinct(of_set, "normalisation")
        means = [(over_seeds(of_set, "relative", normalisation=kind), kind) for kind in kinds]
        best = min(means, key=lambda pair: pair[0].mean)
        worst = max(means, key=lambda pair: pair[0].mean)
        held = [kind for mean, kind in means if mean.mean <= CLOSE]
        yield (
            f"**Embedding, {name}: {_held(held, kinds, 'normalisations')}** Relative difference from {best[0]} "
            f"({best[1]}) to {worst[0]} ({worst[1]}); mean cosine {over_seeds(of_set, 'cosine').mean:.3f}. "
            f"{_errors(of_set, True)}"
        )


def _held(held: Sequence[Any], of: Sequence[Any], what: str) -> str:
    if len(held) == len(of):
        return f"close for all {what}."
    return f"close for {', '.join(map(str, held))} only." if held else f"not close for any of the {what}."


def _errors(cells: Sequence[Row], another_each_task: bool = False) -> str:
    """Which of the two predicts better, as it says whether a difference is a failure of the layer or of the claim.

    `another_each_task`: the constructed layer is made of each task's documents, and fixed weights cannot be that.
    """
    trained, reference = over_seeds(cells, "trained_error").mean, over_seeds(cells, "constructed_error").mean
    doubt = " The trained one is worse, so more training may bring it closer." if trained > reference else ""
    if another_each_task:
        doubt = " The constructed layer is another one for each task, which no training makes of fixed weights."
    return f"Mean error, as a part of the targets' power: trained {trained:.3f}, constructed {reference:.3f}.{doubt}"


def _ends(rows: Sequence[Row], part: str) -> tuple[float, float]:
    reaches = distinct(choose(rows, part=part), "reach")
    return min(reaches), max(reaches)
