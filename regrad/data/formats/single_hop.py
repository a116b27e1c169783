"""Questions with short open answers: PopQA, Natural Questions, TriviaQA."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from regrad.data.field_names import answers_name
from regrad.data.question_files import QuestionFile
from regrad.data.questions import Fields, Question


def popqa(file: QuestionFile) -> Iterator[Question]:
    """PopQA (github.com/AlexTMallen/adaptive-retrieval): a tsv with `id`, `prop`, `question`, `possible_answers`.

    `possible_answers` is a JSON list of names; `prop`, the relation asked for, is the group.
    """
    for record in file.records():
        answers = record.json_texts("possible_answers")
        yield Question(record.maybe("id"), record.text("question"), answers, group=record.maybe("prop"))


def natural_questions(file: QuestionFile) -> Iterator[Question]:
    """Natural Questions, open: JSON lines of `question` and `answer`, or DPR's `nq-test.qa.csv`.

    NQ-open (github.com/google-research-datasets/natural-questions) has a list in `answer`. DPR's file, also of its
    other sets, is tab-separated without a header: question, and a Python list of answers.
    """
    if not file.text.lstrip().startswith(("{", "[")):
        for record in file.table(("question", "answers")):
            yield Question("", record.text("question"), _python_list(record, "answers"))
        return
    for record in file.records():
        yield Question(record.maybe("id"), record.text("question"), record.texts(answers_name(record.fields)))


def _python_list(record: Fields, field: str) -> tuple[str, ...]:
    try:
        value = ast.literal_eval(record.text(field))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise record.error(field, "a list of strings such as ['a', 'b']")
    return Fields(record.where, {field: value}).texts(field)


def triviaqa(file: QuestionFile) -> Iterator[Question]:
    """TriviaQA 1.0 (nlp.cs.washington.edu/triviaqa): an object whose `Data` are `QuestionId`, `Question`, `Answer`.

    `Answer` has a `Value` and `Aliases`, which hold it; the test files, whose answers are kept back, have none.
    """
    for record in file.records("Data"):
        answer = record.record("Answer")
        names = tuple(dict.fromkeys((*answer.maybe_texts("Value"), *answer.maybe_texts("Aliases"))))
        if not names:
            raise answer.error("Aliases", "a list of names")
        yield Question(record.text("QuestionId"), record.text("Question"), names)
