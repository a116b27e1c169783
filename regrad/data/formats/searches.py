"""Questions to search for, without answers: what they need is in a file of qrels."""

from __future__ import annotations

from collections.abc import Iterator

from regrad.data.question_files import QuestionFile
from regrad.data.questions import Question


def beir(file: QuestionFile) -> Iterator[Question]:
    """BEIR's `queries.jsonl`: `_id` and `text`; what else a line has (`metadata`) is passed over."""
    for record in file.records():
        yield Question(record.text("_id"), record.text("text"), ())


def topics(file: QuestionFile) -> Iterator[Question]:
    """A table without a header of id and question, tabs between, as MS MARCO's and pyserini's topics are."""
    for record in file.table(("id", "question")):
        yield Question(record.text("id"), record.text("question"), ())
