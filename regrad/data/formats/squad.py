"""SQuAD and whatever has its layout: a question is asked of one paragraph of an article."""

from __future__ import annotations

from collections.abc import Iterator

from regrad.data.passages import Passage, passage_id
from regrad.data.question_files import QuestionFile
from regrad.data.questions import Fields, Question

UNANSWERABLE = "has no answer (SQuAD 2.0)"


def squad(file: QuestionFile) -> Iterator[Question]:
    """SQuAD 1.1 and 2.0 (rajpurkar.github.io/SQuAD-explorer), or the hub's rows of it, also as Parquet.

    The former is an object whose `data` are articles of `title` and `paragraphs`, each with a `context` and `qas` of
    `id`, `question` and `answers`. A row has `id`, `title`, `context`, `question` and `answers`, an object of lists.
    The paragraph is the gold passage, its id a hash of its text; the group is the article. Questions without an answer
    are left out.
    """
    for record in file.records("data"):
        title = record.maybe("title")
        if not record.has("paragraphs"):
            yield from _asked(file, record, title, _paragraph(record, title))
            continue
        for paragraph in record.records("paragraphs"):
            passage = _paragraph(paragraph, title)
            for asked in paragraph.records("qas"):
                yield from _asked(file, asked, title, passage)


def _paragraph(record: Fields, title: str) -> Passage:
    text = record.text("context")
    return Passage(passage_id(text), title, text)


def _asked(file: QuestionFile, record: Fields, title: str, passage: Passage) -> Iterator[Question]:
    answers = _answers(record)
    if not answers:
        file.left_out[UNANSWERABLE] += 1
        return
    yield Question(
        record.maybe("id"),
        record.text("question"),
        answers,
        passage_ids=(passage.id,),
        passages=(passage,),
        group=title,
    )


def _answers(record: Fields) -> tuple[str, ...]:
    if isinstance(record.fields.get("answers"), dict):
        return record.record("answers").maybe_texts("text")
    return tuple(dict.fromkeys(answer.text("text") for answer in record.records("answers")))
