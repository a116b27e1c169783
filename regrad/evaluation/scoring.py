"""Predictions that are in a file, whoever made them: scored, summed up by group, and tested against others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from regrad.data.predictions import place_of, read_predictions
from regrad.data.questions import Question
from regrad.evaluation.aggregate import Column, Summary, compare_methods, summarise
from regrad.evaluation.answer_parsing.answers import prediction_of
from regrad.evaluation.metrics import Rules, score
from regrad.evaluation.records import Record, check_records, read_records
from regrad.evaluation.significance import Comparison, corrected

OPEN: tuple[Column, ...] = ("em", "f1", "precision", "recall")
CLOSED: tuple[Column, ...] = ("correct",)
"""What is said of closed questions: their accuracy."""

_RECORDS = ".parquet"
_OURS, _THEIRS = "ours", "theirs"


@dataclass(frozen=True)
class Part:
    """The scores of all open or all closed questions of a set (`group` is None), or of one group of them."""

    closed: bool
    group: str | None
    scores: dict[Column, Summary]


def read_scored(path: str, questions: Sequence[Question], rules: Rules = "squad", cut: bool = False) -> list[Record]:
    """A file's predictions with their scores, in the questions' order; `method` of the records is the path.

    The file is one that `read_predictions` knows, or (`.parquet`) the records of a cell of `regrad eval`, which are
    scored anew. Raises `EvaluationError` if it does not match the questions, and `StorageError`.
    """
    said = _recorded(path, questions) if path.endswith(_RECORDS) else read_predictions(path, questions)
    return [_record(path, question, said[question.id], rules, cut) for question in questions]


def _recorded(path: str, questions: Sequence[Question]) -> dict[str, str]:
    records = read_records(*place_of(path))
    check_records(records, questions)
    return {row.question_id: row.raw for row in records}


def _record(path: str, question: Question, said: str, rules: Rules, cut: bool) -> Record:
    prediction = prediction_of(question, said, cut)
    return Record(
        set="",
        method=path,
        model="",
        k=0,
        seed=0,
        question_id=question.id,
        question=question.question,
        answers=question.answers,
        kind=question.kind,
        group=question.group,
        raw=said,
        prediction=prediction,
        **asdict(score(question, prediction if question.kind == "open" else said, rules)),
        passage_ids=(),
        passage_scores=(),
        prompt_tokens=0,
        completion_tokens=0,
        milliseconds=0.0,
        bytes_fetched=0,
    )


def parts(records: Sequence[Record]) -> list[Part]:
    """Open questions, then closed ones: all of them, then each group if any has a name."""
    found = []
    for closed in (False, True):
        ours = [record for record in records if (record.kind != "open") == closed]
        if ours:
            found.append(Part(closed, None, _scores(ours, closed)))
        groups = sorted({record.group for record in ours})
        for group in groups if any(groups) else ():
            found.append(Part(closed, group, _scores([row for row in ours if row.group == group], closed)))
    return found


def _scores(records: Sequence[Record], closed: bool) -> dict[Column, Summary]:
    return {column: summarise(records, column)[records[0].cell] for column in (CLOSED if closed else OPEN)}


def compare_records(records: Sequence[Record], reference: Sequence[Record]) -> dict[Column, Comparison]:
    """The first against the second by every metric, over all questions that it is for; Holm's correction over them.

    Raises `EvaluationError` for fewer than two questions.
    """
    both = [*(replace(row, method=_OURS) for row in records), *(replace(row, method=_THEIRS) for row in reference)]
    found: dict[Column, Comparison] = {}
    for closed, columns in ((False, OPEN), (True, CLOSED)):
        rows = [row for row in both if (row.kind != "open") == closed]
        for column in columns if rows else ():
            found[column] = compare_methods(rows, column, _THEIRS)[_OURS]
    return corrected(found)
