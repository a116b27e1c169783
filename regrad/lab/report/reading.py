"""The records and measurements of a report's directory."""

from __future__ import annotations

import json
from typing import Any

from regrad.data.augmented import read_augmented
from regrad.data.corpora import read_passages
from regrad.data.jsonl import read_jsonl
from regrad.errors import EvaluationError
from regrad.evaluation.output import Output
from regrad.evaluation.records import Record
from regrad.evaluation.report.entries import Entry, gather
from regrad.lab.files import QUESTIONS
from regrad.lab.report.config import LabReportConfig
from regrad.lab.report.files import GROUP_OLD
from regrad.lab.report.measuring import MEASURED
from regrad.lab.report.studies import STUDIES
from regrad.lab.report.table import FIRST, NEW, OLD, Measured, Table
from regrad.storage import Storage


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


def read_entries(config: LabReportConfig) -> dict[str, list[Entry]]:
    """The rows of each study, with intervals, costs and comparisons."""
    outputs = {name: _output(config, name) for name in STUDIES}
    return {name: gather(output, output.planned()) for name, output in outputs.items()}


def read_measured(config: LabReportConfig) -> Measured:
    """What one process measured."""
    try:
        found: dict[str, Any] = json.loads(Storage(config.output).read(MEASURED))
        batching = found["batching"]
        return Measured(
            latency=found["latency"],
            different=batching["different"],
            alone=batching["alone"],
            together=batching["together"],
            questions=batching["questions"],
            unchanged=found["unchanged"],
            bytes=found["bytes"],
            asked_before=_asked_before(f"{config.output}/lab"),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{config.output}/{MEASURED} is damaged; remove it and steps/measure.json") from error


def _asked_before(lab: str) -> int:
    """How many of the questions are in the augmented corpus, which PRAG and instruction CPT are trained on."""
    trained = {pair.question for item in read_augmented(lab) for pair in item.pairs}
    return sum(record["question"] in trained for _, record in read_jsonl(f"{lab}/{QUESTIONS}"))


def _output(config: LabReportConfig, name: str) -> Output:
    return Output(f"{config.output}/studies/{name}")
