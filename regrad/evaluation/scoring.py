"""Predictions in a file, by any program: scored, summarised by group, and tested against others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from regrad.data.predictions import place_of, read_predictions
from regrad.data.questions import ClosedReader, Question
from regrad.evaluation.answer_parsing.answers import prediction_of
from regrad.evaluation.metrics import AnswerScore, Rules, score
from regrad.evaluation.records import Cell, Record, check_records, read_records
from regrad.evaluation.statistics import Column, Comparison, Summary, compare_methods, corrected, summarise

OPEN: tuple[Column, ...] = ("em", "f1", "precision", "recall")
CLOSED: tuple[Column, ...] = ("correct",)
"""The columns of closed questions: their accuracy."""

_RECORDS = ".parquet"
_OURS = "ours"
_THEIRS = "theirs"


@dataclass(frozen=True)
class ScoredPart:
    """The scores of all open or all closed questions of a set (`group` is None), or of one group of them."""

    closed: bool
    group: str | None
    scores: dict[Column, Summary]


def read_scored(
    path: str,
    questions: Sequence[Question],
    rules: Rules = "squad",
    cut: bool = False,
    reader: ClosedReader = "strict",
) -> list[Record]:
    """A file's predictions with their scores, in the questions' order; `method` of the records is the path.

    The file is one that `read_predictions` knows, or (`.parquet`) the records of a cell of `regrad eval`, which are
    scored again. Raises `EvaluationError` if it does not match the questions, and `StorageError`.
    """
    if path.endswith(_RECORDS):
        saved = read_records(*place_of(path))
        check_records(saved, questions)
        texts = {row.question_id: row.raw for row in saved}
    else:
        texts = read_predictions(path, questions)
    records = []
    for question in questions:
        text = texts[question.id]
        prediction = prediction_of(question, text, cut, reader)
        scores = score(question, prediction if question.kind == "open" else text, rules, reader)
        records.append(_record(path, question, text, prediction, scores))
    return records


def _record(method: str, question: Question, text: str, prediction: str, scores: AnswerScore) -> Record:
    """A prediction as an evaluation's record: what only an evaluation measures is empty."""
    return Record.of(
        Cell(set="", method=method, model="", k=0, seed=0),
        question,
        text,
        prediction,
        scores,
        passage_ids=(),
        passage_scores=(),
        prompt_tokens=0,
        completion_tokens=0,
        milliseconds=0.0,
        bytes_fetched=0,
    )


def parts(records: Sequence[Record]) -> list[ScoredPart]:
    """The scores of the open questions, then of the closed ones: of all, then of each group if any has a name."""
    found = []
    for closed in (False, True):
        ours = [record for record in records if (record.kind != "open") == closed]
        if ours:
            found.append(ScoredPart(closed, None, _scores(ours, closed)))
        groups = sorted({record.group for record in ours})
        for group in groups if any(groups) else ():
            found.append(ScoredPart(closed, group, _scores([row for row in ours if row.group == group], closed)))
    return found


def _scores(records: Sequence[Record], closed: bool) -> dict[Column, Summary]:
    return {column: summarise(records, column)[records[0].cell] for column in (CLOSED if closed else OPEN)}


def compare_records(records: Sequence[Record], reference: Sequence[Record]) -> dict[Column, Comparison]:
    """The first against the second by every metric, over all questions that have it, with Holm's correction over these.

    Raises `EvaluationError` for fewer than two questions.
    """
    both = [*(replace(row, method=_OURS) for row in records), *(replace(row, method=_THEIRS) for row in reference)]
    found: dict[Column, Comparison] = {}
    for closed, columns in ((False, OPEN), (True, CLOSED)):
        rows = [row for row in both if (row.kind != "open") == closed]
        for column in columns if rows else ():
            found[column] = compare_methods(rows, column, _THEIRS)[_OURS]
    return corrected(found)
