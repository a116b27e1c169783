"""Is it more than luck: intervals of means, paired tests against a reference, Holm's correction for many of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from regrad.errors import EvaluationError

LEVEL = 0.95
RESAMPLES = 10_000

_MOST_RESAMPLES = 1_000_000
_CHUNK = 1_000_000
"""Numbers drawn at once."""
_SAME = 1e-12
"""Differences of means below this are rounding."""

_Key = TypeVar("_Key", bound=Hashable)
_Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A method against the reference on the same questions; the p-values are two-sided."""

    questions: int
    difference: float
    """Mean of the method less mean of the reference."""
    interval: Interval
    """Of the difference: percentiles of the paired bootstrap."""
    p_bootstrap: float
    p_t: float
    holm_bootstrap: float
    """Corrected for all comparisons made together; alone, the same as `p_bootstrap`."""
    holm_t: float


def wilson_interval(successes: int, total: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share of yes-or-no outcomes: sensible also at none, at all, and for few questions."""
    if not 0 <= successes <= total or total < 1:
        raise EvaluationError(f"{successes} of {total} is no share")
    found = stats.binomtest(successes, total).proportion_ci(_checked_level(level), method="wilson")
    return Interval(float(found.low), float(found.high))


def bootstrap_interval(
    values: Sequence[float], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The percentile bootstrap's interval of a mean. Of values that are all alike it is a point: it knows no better."""
    return _percentiles(_resampled_means(_checked(values, 1), resamples, seed), level)


def mean_interval(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> Interval:
    """Wilson's interval if every value is 0 or 1 (an accuracy), else the bootstrap's."""
    numbers = _checked(values, 1)
    if np.isin(numbers, (0.0, 1.0)).all():
        return wilson_interval(int(numbers.sum()), len(numbers), level)
    return bootstrap_interval(values, level, seed=seed)


def compare(
    values: Sequence[float],
    reference: Sequence[float],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap and paired t-test of two lists of scores of the same questions in the same order.

    The bootstrap's p is the share of resamples, moved to a mean of 0, that are as far from it as what was found. With
    n questions neither p is below 2^(1-n), which is all that n signs can show. Raises `EvaluationError` for fewer than
    two questions, lists that differ in length, or values that are no finite numbers.
    """
    ours, theirs = _checked(values, 2), _checked(reference, 2)
    if len(ours) != len(theirs):
        raise EvaluationError(f"paired tests need the same questions: {len(ours)} values against {len(theirs)}")
    differences = ours - theirs
    mean = float(differences.mean())
    means = _resampled_means(differences, resamples, seed)
    extreme = int((np.abs(means - mean) >= abs(mean) - _SAME).sum())
    least = 2.0 ** (1 - len(differences))
    p_bootstrap = max((extreme + 1) / (resamples + 1), least)
    p_t = max(_paired_t(differences), least)
    return Comparison(len(differences), mean, _percentiles(means, level), p_bootstrap, p_t, p_bootstrap, p_t)


def compare_all(
    columns: Mapping[str, Sequence[float]],
    reference: str,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Every column but the reference against it, corrected for their number."""
    if reference not in columns:
        raise EvaluationError(f"no reference {reference!r:.60} among {', '.join(columns)}")
    others = {name: values for name, values in columns.items() if name != reference}
    return corrected(
        {name: compare(values, columns[reference], level, resamples, seed) for name, values in others.items()}
    )


def corrected(comparisons: Mapping[_Key, Comparison]) -> dict[_Key, Comparison]:
    """The same comparisons with Holm's correction over all of them, however they were corrected before."""
    bootstrap = holm([comparison.p_bootstrap for comparison in comparisons.values()])
    t = holm([comparison.p_t for comparison in comparisons.values()])
    rows = zip(comparisons.items(), bootstrap, t, strict=True)
    return {key: replace(comparison, holm_bootstrap=b, holm_t=p) for (key, comparison), b, p in rows}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (1979), in the order given; they bound the chance of any false finding."""
    if not all(0.0 <= p <= 1.0 for p in p_values):
        raise EvaluationError("a p-value is a number from 0 to 1")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _paired_t(differences: _Floats) -> float:
    """Where all differences are alike there is no variance to test with: 0 shows nothing, anything else all."""
    if float(np.ptp(differences)) < _SAME:
        return 1.0 if abs(float(differences[0])) < _SAME else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _resampled_means(values: _Floats, resamples: int, seed: int) -> _Floats:
    if not 1 <= resamples <= _MOST_RESAMPLES:
        raise EvaluationError(f"resamples must be from 1 to {_MOST_RESAMPLES}, found {resamples}")
    generator, size, means = np.random.default_rng(seed), len(values), np.empty(resamples)
    step = max(1, _CHUNK // size)
    for start in range(0, resamples, step):
        chosen = generator.integers(size, size=(min(step, resamples - start), size))
        means[start : start + step] = values[chosen].mean(axis=1)
    return means


def _percentiles(means: _Floats, level: float) -> Interval:
    outside = (1.0 - _checked_level(level)) / 2.0
    low, high = np.quantile(means, (outside, 1.0 - outside))
    return Interval(float(low), float(high))


def _checked_level(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise EvaluationError(f"a confidence level is a number between 0 and 1, found {level}")
    return level


def _checked(values: Sequence[float], least: int) -> _Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < least or not np.isfinite(numbers).all():
        raise EvaluationError(f"expected {least} or more finite numbers, found {len(values)} values")
    return numbers
