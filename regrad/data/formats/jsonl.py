"""Question files in regrad's own forms: JSON lines, the tasks of meta-training, and augmented passages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from regrad.data.closed_questions import check_keys, closed
from regrad.data.field_names import ANSWERS, PASSAGE_IDS, answers_name, named
from regrad.data.passages import Passage
from regrad.data.question_files import QuestionFile
from regrad.data.questions import Fields, Question
from regrad.data.tasks import Task
from regrad.errors import CorpusError, EvaluationError

_ID = ("id", "_id")
"""Not `docid`, which a passage may have: in a question's record it is the document that the question is about."""
_KEYS = ("question", *ANSWERS, "id", "kind", "choices", *PASSAGE_IDS, "passages", "group", "turns")


def jsonl(file: QuestionFile) -> Iterator[Question]:
    """Any JSON lines (or JSON list, or table) with `question` and `answer`, `answers` or FlashRAG's `golden_answers`.

    Optional are `id` (or `_id`), `kind` (open, yes-no or choice), `choices`, `passage_ids` or one `passage_id` (as in
    the lab's own `questions.jsonl`) or a list `gold`, `passages` (objects with `id`, `title`, `text`), `group`, and
    `turns` that came before the question (objects with `role`, user or assistant, and `content`). With `choices`, an
    answer is a text of theirs, else a letter or, as a number, a place from 0. Other keys are passed over, but one that
    is nearly one of these is an error.
    """
    for record in file.records():
        check_keys(record, _KEYS)
        kind, choices, answers = closed(record, answers_name(record.fields), file.kind)
        yield Question(
            record.maybe(named(record.fields, _ID)),
            record.text("question"),
            answers,
            kind,
            choices,
            record.maybe_texts(_gold(record)),
            _passages(record),
            record.maybe("group"),
            tuple(_turn(item) for item in record.records("turns")) if record.has("turns") else (),
        )


def _turn(record: Fields) -> tuple[str, str]:
    return record.word("role", ("user", "assistant")), record.text("content")


def _gold(record: Fields) -> str:
    """The field of the gold passages' ids; `gold` only as a list, for some sets have the answer there."""
    field = named(record.fields, PASSAGE_IDS)
    return field if field != "gold" or isinstance(record.fields.get(field), list) else PASSAGE_IDS[0]


def _passages(record: Fields) -> tuple[Passage, ...]:
    if not record.has("passages"):
        return ()
    return tuple(_passage(item.fields, item.where) for item in record.records("passages"))


def _passage(fields: object, where: str) -> Passage:
    try:
        return Passage.from_record(fields, where)
    except CorpusError as error:
        raise EvaluationError(str(error), code="bad_passage", **error.fields) from error


def tasks(file: QuestionFile) -> Iterator[Question]:
    """Tasks of meta-training (`regrad.data.tasks`): every question of every task, with the passages it rests on."""
    for number, record in enumerate(file.records(), start=1):
        try:
            task = Task.from_record(record.fields, record.where)
        except CorpusError as error:
            raise EvaluationError(str(error), code="bad_task", **error.fields) from error
        for place, question in enumerate(task.questions):
            passages = tuple(task.passages[position] for position in question.context)
            rests_on = tuple(passage.id for passage in passages)
            name = f"{task.id or number}/{place}"
            yield replace(question.asked, id=name, passage_ids=rests_on, passages=passages)


def augmented(file: QuestionFile) -> Iterator[Question]:
    """`augmented.jsonl` of `regrad augment`: every question of every passage, with that passage."""
    for record in file.records():
        passage = _passage(record.fields, record.where)
        for place, pair in enumerate(record.records("pairs") if record.has("pairs") else ()):
            yield pair_question(f"{passage.id}/{place}", pair, passage)


def pair_question(name: str, pair: Fields, passage: Passage) -> Question:
    """One question of an augmented passage, with its short answer."""
    kind, choices, answers = closed(pair, "answer")
    return Question(name, pair.text("question"), answers, kind, choices, (passage.id,), (passage,))
