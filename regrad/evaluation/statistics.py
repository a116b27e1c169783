"""From records to the numbers of a table: means with intervals, and paired tests with Holm's correction.

Intervals and tests are over questions: the records of a question with several seeds are averaged first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from regrad.data.predictions import mismatches, refuse
from regrad.errors import EvaluationError
from regrad.evaluation.records import Cell, Record

LEVEL = 0.95
RESAMPLES = 10_000

Column = Literal[
    "em",
    "f1",
    "precision",
    "recall",
    "correct",
    "parsed",
    "strict_correct",
    "strict_parsed",
    "release_correct",
    "release_parsed",
    "prompt_tokens",
    "completion_tokens",
    "milliseconds",
    "bytes_fetched",
]
COLUMNS: tuple[str, ...] = get_args(Column)

Group = tuple[Any, ...]
"""The values of the fields that records were grouped by."""

_MOST_RESAMPLES = 1_000_000
_CHUNK = 1_000_000  # numbers drawn at once
_SAME = 1e-12  # smaller differences of means are rounding

_Key = TypeVar("_Key", bound=Hashable)
_Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """One column of one group of records."""

    questions: int
    """Different ones: with several seeds each counts once."""
    records: int
    mean: float
    interval: Interval
    """Over questions, each with its mean over seeds: Wilson's for accuracies, else the bootstrap's."""
    unparsable: int
    """Records whose answer could not be read."""


@dataclass(frozen=True)
class Comparison:
    """A method against the reference on the same questions; the p-values are two-sided."""

    questions: int
    difference: float
    """Mean of the method minus mean of the reference."""
    interval: Interval
    """Of the difference: percentiles of the paired bootstrap."""
    p_bootstrap: float
    p_t: float
    holm_bootstrap: float
    """Corrected for all comparisons made together; for a single one, the same as `p_bootstrap`."""
    holm_t: float


def summarise(
    records: Iterable[Record], column: Column, by: Sequence[str] = Cell._fields, level: float = LEVEL
) -> dict[Group, Summary]:
    """Mean and interval of a column by the values of fields such as `set`, `method`, `k`, `group`, in first-seen order.

    Leave `seed` out to take the mean over seeds. Raises `EvaluationError` for an unknown column or field.
    """
    _check_names(by, (*Cell._fields, "group", "kind"), "field")
    groups: defaultdict[Group, list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(getattr(record, name) for name in by)].append(record)
    found = {}
    for group, rows in groups.items():
        values = list(by_question(rows, column).values())
        unparsable = sum(not row.parsed for row in rows)
        found[group] = Summary(len(values), len(rows), fmean(values), mean_interval(values, level), unparsable)
    return found


def by_question(records: Iterable[Record], column: Column) -> dict[tuple[str, str], float]:
    """The column's value by question (set and id): the mean over the records of a question."""
    _check_names([column], COLUMNS, "column")
    values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        values[record.set, record.question_id].append(float(getattr(record, column)))
    return {question: fmean(found) for question, found in values.items()}


def compare_methods(
    records: Iterable[Record],
    column: Column,
    reference: str,
    label: Callable[[Record], str] = lambda record: record.method,
) -> dict[str, Comparison]:
    """Every method (or other `label`) against the reference, paired by question, Holm-corrected over all of them.

    Records of a question with the same label (its seeds, and whatever else the label does not tell apart) are averaged
    first, so that a question counts once. Raises `EvaluationError` if the reference is missing or if two methods did
    not answer the same questions.
    """
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[label(record)].append(record)
    columns = {name: by_question(rows, column) for name, rows in groups.items()}
    order = list(columns.get(reference, {}))
    expected = ["/".join(question) for question in order]
    for name, found in columns.items() if order else ():
        problems = mismatches(["/".join(question) for question in found], expected)
        refuse(f"{name} did not answer the questions of {reference}", problems, "other_questions")
    return compare_all({name: [found[key] for key in order] for name, found in columns.items()}, reference)


def _check_names(names: Iterable[str], known: Sequence[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise EvaluationError(
                f"unknown {what} {name!r:.60}; expected one of {', '.join(known)}", code="unknown_name", name=name
            )


def wilson_interval(successes: int, total: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share: sensible also if none or all succeed, and for few questions."""
    if not 0 <= successes <= total or total < 1:
        raise EvaluationError(
            f"expected 0 to {total} successes of at least one, found {successes}",
            code="impossible_share",
            successes=successes,
            total=total,
        )
    found = stats.binomtest(successes, total).proportion_ci(_checked_level(level), method="wilson")
    return Interval(float(found.low), float(found.high))


def bootstrap_interval(
    values: Sequence[float], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The percentile bootstrap's interval of a mean; for values that are all alike it is a point."""
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

    Raises `EvaluationError` for fewer than two questions, lists of different lengths, or values that are not finite.
    """
    ours = _checked(values, 2)
    theirs = _checked(reference, 2)
    if len(ours) != len(theirs):
        raise EvaluationError(
            f"paired tests need the same questions: {len(ours)} values against {len(theirs)}",
            code="other_lengths",
            values=len(ours),
            reference=len(theirs),
        )
    differences = ours - theirs
    mean = float(differences.mean())
    means = _resampled_means(differences, resamples, seed)
    # The bootstrap's p is the share of resamples, shifted to a mean of 0, that are as extreme as what was found.
    extreme = int((np.abs(means - mean) >= abs(mean) - _SAME).sum())
    # With n questions neither p is below 2^(1-n): the n signs of the differences cannot show more.
    least = 2.0 ** (1 - len(differences))
    p_bootstrap = max((extreme + 1) / (resamples + 1), least)
    if float(np.ptp(differences)) >= _SAME:
        p_t = float(stats.ttest_1samp(differences, 0.0).pvalue)
    else:  # all differences are alike, so there is no variance to test with: a 0 shows nothing, anything else all
        p_t = 1.0 if abs(float(differences[0])) < _SAME else 0.0
    p_t = max(p_t, least)
    return Comparison(len(differences), mean, _percentiles(means, level), p_bootstrap, p_t, p_bootstrap, p_t)


def compare_all(
    columns: Mapping[str, Sequence[float]],
    reference: str,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Every column except the reference against it, corrected for their number."""
    if reference not in columns:
        raise EvaluationError(
            f"no reference {reference!r:.60} among {', '.join(columns)}", code="no_reference", reference=reference
        )
    others = {name: values for name, values in columns.items() if name != reference}
    return corrected(
        {name: compare(values, columns[reference], level, resamples, seed) for name, values in others.items()}
    )


def corrected(comparisons: Mapping[_Key, Comparison]) -> dict[_Key, Comparison]:
    """The comparisons with Holm's correction over all of them, in place of any earlier one."""
    bootstrap = holm([comparison.p_bootstrap for comparison in comparisons.values()])
    t = holm([comparison.p_t for comparison in comparisons.values()])
    rows = zip(comparisons.items(), bootstrap, t, strict=True)
    return {key: replace(comparison, holm_bootstrap=b, holm_t=p) for (key, comparison), b, p in rows}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (1979), in the order given; they bound the chance of any false finding."""
    if not all(0.0 <= p <= 1.0 for p in p_values):
        raise EvaluationError(f"expected p-values from 0 to 1, found {list(p_values)}", code="bad_p_value")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _resampled_means(values: _Floats, resamples: int, seed: int) -> _Floats:
    if not 1 <= resamples <= _MOST_RESAMPLES:
        raise EvaluationError(
            f"resamples must be from 1 to {_MOST_RESAMPLES}, found {resamples}", code="bad_resamples", found=resamples
        )
    generator = np.random.default_rng(seed)
    size = len(values)
    means = np.empty(resamples)
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
        raise EvaluationError(f"a confidence level is between 0 and 1, found {level}", code="bad_level", found=level)
    return level


def _checked(values: Sequence[float], least: int) -> _Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < least or not np.isfinite(numbers).all():
        raise EvaluationError(
            f"expected at least {least} finite numbers, found {len(values)} values",
            code="bad_numbers",
            expected=least,
            found=len(values),
        )
    return numbers
