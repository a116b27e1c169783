"""What claims are computed from: all records of the evaluations, as scores by question, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from regrad.data.augmented import read_augmented
from regrad.data.corpora import read_passages
from regrad.data.jsonl import read_jsonl
from regrad.errors import EvaluationError
from regrad.evaluation.output import Output
from regrad.evaluation.records import Record
from regrad.evaluation.report.entries import ReportEntry, gather
from regrad.evaluation.statistics import by_question
from regrad.lab.files import QUESTIONS
from regrad.storage import Storage
from studies.lab_report.config import LabReportConfig
from studies.lab_report.files import GROUP_OLD
from studies.lab_report.measurements import MEASURED
from studies.lab_report.plan import STUDIES

Scores = Mapping[str, float]
"""Exact match by question, the mean over seeds."""

NEW = "drift, new"
OLD = "drift, memorised"
FIRST = "drift, first documents"
PARTS = {
    NEW: "the documents",
    FIRST: "those that came first",
    OLD: "people whom the base has memorised",
}
"""Parts of the drift study's questions, and what they are about."""


class Key(NamedTuple):
    """One row of a study; `k` is 0 for a method that retrieves nothing."""

    study: str
    set: str
    method: str
    k: int = 0


@dataclass(frozen=True)
class Measured:
    """What one process measured: milliseconds by method, seconds of chunks of questions, bytes of a passage."""

    latency: Mapping[str, Sequence[float]]
    different: int
    alone: Sequence[float]
    together: Sequence[float]
    questions: int
    unchanged: bool
    bytes: Mapping[str, float]
    asked_before: int = 0
    """Questions about people that baselines were trained on, word for word."""


class Table:
    """Scores of every row of every study."""

    def __init__(self, studies: Mapping[str, Iterable[Record]]) -> None:
        groups: dict[Key, list[Record]] = {}
        for study, records in studies.items():
            for record in records:
                groups.setdefault(Key(study, record.set, record.method, record.k), []).append(record)
        self._records = groups
        self._scores = {key: {q: em for (_, q), em in by_question(rows, "em").items()} for key, rows in groups.items()}

    def scores(self, key: Key) -> Scores:
        """Raises `EvaluationError` for a row that no study has."""
        if key not in self._scores:
            text = f"there are no records of {key.method} on {key.set} at k={key.k} in {key.study}"
            raise EvaluationError(text, code="no_records", **key._asdict())
        return self._scores[key]

    def mean(self, key: Key) -> float:
        """Exact match over all questions."""
        return fmean(self.scores(key).values())

    def points(self, key: Key) -> str:
        """Exact match of a row, in words."""
        return f"{100 * self.mean(key):.1f}"

    def curve(self, keys: Sequence[Key]) -> str:
        """Rows that differ in k."""
        return ", ".join(f"k={key.k} {self.points(key)}" for key in keys)

    def line(self, keys: Sequence[Key]) -> str:
        """Rows that differ in their set."""
        return ", ".join(f"{key.set} {self.points(key)}" for key in keys)

    def ks(self, study: str, name: str, method: str) -> list[int]:
        """The numbers of passages that a method was asked with on a set, growing."""
        return sorted(key.k for key in self._scores if key[:3] == (study, name, method))

    def methods(self, study: str, name: str, k: int) -> list[Key]:
        """The rows of a set at k, with those that retrieve nothing."""
        return [key for key in self._scores if key[:2] == (study, name) and key.k in (0, k)]

    def sets(self, study: str) -> list[str]:
        """The sets of a study, in their order."""
        return list(dict.fromkeys(key.set for key in self._scores if key.study == study))

    def records(self, key: Key) -> list[Record]:
        """The records behind a row."""
        return self._records.get(key, [])


def read_table(config: LabReportConfig) -> Table:
    """Everything that the studies recorded."""
    found: dict[str, list[Record]] = {}
    for name in STUDIES:
        output = _output(config, name)
        found[name] = [record for card in output.done(output.planned()) for record in output.records(card)]
    return Table(found | _parts(found["drift"], f"{config.output}/documents/{config.documents[0]}.jsonl"))


def _parts(records: list[Record], first: str) -> dict[str, list[Record]]:
    """The drift study's records by what they are about."""
    new = [record for record in records if record.group != GROUP_OLD]
    names = [passage.title for passage in read_passages(first)]
    return {
        NEW: new,
        FIRST: [record for record in new if any(name in record.question for name in names)],
        OLD: [record for record in records if record.group == GROUP_OLD],
    }


def read_entries(config: LabReportConfig) -> dict[str, list[ReportEntry]]:
    """The rows of each study, with intervals, costs and comparisons."""
    outputs = {name: _output(config, name) for name in STUDIES}
    return {name: gather(output, output.planned()) for name, output in outputs.items()}


def read_measured(config: LabReportConfig) -> Measured:
    """What one process measured."""
    try:
        found: dict[str, Any] = json.loads(Storage(config.output).read(MEASURED))
        return Measured(**found.pop("batching"), **found, asked_before=_asked_before(f"{config.output}/lab"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{config.output}/{MEASURED} is damaged; remove it and steps/measure.json"
        raise EvaluationError(text, code="damaged", uri=f"{config.output}/{MEASURED}") from error


def _asked_before(lab: str) -> int:
    """How many of the questions are in the augmented corpus, which PRAG and instruction CPT are trained on."""
    trained = {pair.question for item in read_augmented(lab) for pair in item.pairs}
    return sum(record["question"] in trained for _, record in read_jsonl(f"{lab}/{QUESTIONS}"))


def _output(config: LabReportConfig, name: str) -> Output:
    return Output(f"{config.output}/studies/{name}")
