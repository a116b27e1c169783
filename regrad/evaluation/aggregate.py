"""From records to the numbers of a table: means with intervals by cell, unparsable counts, methods against one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, get_args

from regrad.data.id_checks import mismatches, refuse
from regrad.errors import EvaluationError
from regrad.evaluation.records import Cell, Record
from regrad.evaluation.significance import LEVEL, Comparison, Interval, compare_all, mean_interval

Column = Literal[
    "em",
    "f1",
    "precision",
    "recall",
    "correct",
    "parsed",
    "prompt_tokens",
    "completion_tokens",
    "milliseconds",
    "bytes_fetched",
]
COLUMNS: tuple[str, ...] = get_args(Column)

Group = tuple[Any, ...]
"""The values of the fields that records were grouped by."""


@dataclass(frozen=True)
class Summary:
    """One column of one group of records."""

    questions: int
    """Different ones: with several seeds each counts once."""
    records: int
    mean: float
    interval: Interval
    """Over questions, each the mean of its seeds: Wilson's for accuracies, else the bootstrap's."""
    unparsable: int
    """Records whose answer could not be read."""


def summarise(
    records: Iterable[Record], column: Column, by: Sequence[str] = Cell._fields, level: float = LEVEL
) -> dict[Group, Summary]:
    """Mean and interval of a column by the values of fields such as `set`, `method`, `k`, `group`, in first-seen order.

    Leave `seed` out to take the mean over seeds. Raises `EvaluationError` for an unknown column or field.
    """
    groups = _grouped(records, by)
    return {group: _summary(rows, column, level) for group, rows in groups.items()}


def by_question(records: Iterable[Record], column: Column) -> dict[tuple[str, str], float]:
    """The column's value by question (set and id), of several records of a question their mean."""
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

    Records of a question that share a label (its seeds, and whatever else the caller did not part) are averaged first,
    so that a question counts once. Raises `EvaluationError` if the reference is not there or two methods did not
    answer the same questions.
    """
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[label(record)].append(record)
    columns = {name: by_question(rows, column) for name, rows in groups.items()}
    order = list(columns.get(reference, {}))
    for name, found in columns.items() if order else ():
        refuse(f"{name} did not answer the questions of {reference}", mismatches(_names(found), _names(order)))
    return compare_all({name: [found[key] for key in order] for name, found in columns.items()}, reference)


def _names(questions: Iterable[tuple[str, str]]) -> list[str]:
    return ["/".join(question) for question in questions]


def _grouped(records: Iterable[Record], by: Sequence[str]) -> dict[Group, list[Record]]:
    _check_names(by, (*Cell._fields, "group", "kind"), "field")
    groups: defaultdict[Group, list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(getattr(record, name) for name in by)].append(record)
    return groups


def _summary(rows: Sequence[Record], column: Column, level: float) -> Summary:
    values = list(by_question(rows, column).values())
    unparsable = sum(not row.parsed for row in rows)
    return Summary(len(values), len(rows), fmean(values), mean_interval(values, level), unparsable)


def _check_names(names: Iterable[str], known: Sequence[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise EvaluationError(f"unknown {what} {name!r:.60}; expected one of {', '.join(known)}")
