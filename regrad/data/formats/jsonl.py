"""Question files in regrad's own forms: JSON lines, the tasks of meta-training, and augmented passages."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import lru_cache

from regrad.data.passages import Passage
from regrad.data.question_files import QuestionFile
from regrad.data.questions import MOST_CHOICES, QUESTION_KINDS, YES_NO, Fields, Question, QuestionKind, label
from regrad.errors import CorpusError, EvaluationError

_KEYS = (
    *("question", "answer", "answers", "id", "kind", "choices"),
    *("passage_ids", "passage_id", "passages", "group"),
)
_NEAR = 0.8
_TRUTH = {"true": "yes", "false": "no"}


def jsonl(file: QuestionFile) -> Iterator[Question]:
    """Any JSON lines (or JSON list, or table) with `question` and `answer` or `answers`.

    Optional are `id`, `kind` (open, yes-no or choice), `choices`, `passage_ids` or one `passage_id` (as in the lab's
    own `questions.jsonl`), `passages` (objects with `id`, `title`, `text`) and `group`. With `choices`, an answer is a
    text of theirs, else a letter or, as a number, a place from 0. Other keys are passed over, but one that is nearly
    one of these is an error.
    """
    for record in file.records():
        _check_keys(record)
        kind, choices, answers = closed(record, "answers" if record.has("answers") else "answer")
        yield Question(
            record.maybe("id"),
            record.text("question"),
            answers,
            kind,
            choices,
            record.maybe_texts("passage_ids" if record.has("passage_ids") else "passage_id"),
            _passages(record),
            record.maybe("group"),
        )


def _check_keys(record: Fields) -> None:
    for key in record.fields:
        if near := _misspelt(str(key)):
            text = f"{record.where}: unknown field '{key:.60}'; did you mean '{near}'?"
            raise EvaluationError(text, code="unknown_field", where=record.where, field=key, near=near)


@lru_cache(maxsize=1024)
def _misspelt(key: str) -> str:
    """The known key that this one misspells; empty if it is a known one, or another word."""
    if key in _KEYS or len(key) > 2 * max(map(len, _KEYS)):
        return ""
    plain = "_".join(key.casefold().replace("-", " ").split())
    if plain in _KEYS:
        return plain
    near = difflib.get_close_matches(plain, [name for name in _KEYS if len(name) > 2], n=1, cutoff=_NEAR)
    return near[0] if near and abs(len(near[0]) - len(plain)) <= 1 else ""


def closed(record: Fields, field: str) -> tuple[QuestionKind, tuple[str, ...], tuple[str, ...]]:
    """Kind, choices and answers of a record that may be closed."""
    choices = record.strings("choices") if record.fields.get("choices") else ()
    kind: QuestionKind = "choice" if choices else "open"
    if record.has("kind"):
        kind = record.word("kind", QUESTION_KINDS)
    if kind == "open":
        return kind, (), record.texts(field)
    if kind == "yes-no":
        words = tuple(choice.lower() for choice in choices) or YES_NO
        return kind, words, (_truth(record, field, words) or record.word(field, words),)
    if not 2 <= len(choices) <= MOST_CHOICES or len(choices) != len(set(choices)):
        raise record.error("choices", f"a list of 2 to {MOST_CHOICES} different texts")
    return kind, choices, tuple(_letter(record, field, answer, choices) for answer in record.texts(field))


def _truth(record: Fields, field: str, words: tuple[str, ...]) -> str:
    """The word that the answer `true` or `false` stands for; empty for another answer, or if no word fits."""
    value = record.fields.get(field)
    (value,) = value if isinstance(value, list) and len(value) == 1 else (value,)
    said = str(value).strip().lower() if isinstance(value, (bool, str)) else ""
    meant = [word for word in (said, _TRUTH.get(said, "")) if word in words]
    return meant[0] if said in _TRUTH and meant else ""


def _letter(record: Fields, field: str, answer: str, choices: tuple[str, ...]) -> str:
    letters = [label(number) for number in range(len(choices))]
    if answer in choices:
        return letters[choices.index(answer)]
    if answer.isascii() and answer.isdigit() and int(answer) < len(choices):
        return letters[int(answer)]
    if answer.upper() not in letters:
        raise record.error(field, f"one of {', '.join(letters)}, or a text of the choices")
    return answer.upper()


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
        name = record.maybe("id") or str(number)
        passages = _passages(record)
        for place, question in enumerate(record.records("questions")):
            rests_on = _context(question, passages)
            yield Question(
                f"{name}/{place}",
                question.text("question"),
                question.texts("answer"),
                passage_ids=tuple(passage.id for passage in rests_on),
                passages=rests_on,
            )


def augmented(file: QuestionFile) -> Iterator[Question]:
    """`augmented.jsonl` of `regrad augment`: every question of every passage, with that passage."""
    for record in file.records():
        passage = _passage(record.fields, record.where)
        for place, pair in enumerate(record.records("pairs") if record.has("pairs") else ()):
            yield pair_question(f"{passage.id}/{place}", pair, passage)


def pair_question(name: str, pair: Fields, passage: Passage) -> Question:
    """One question of an augmented passage, with its short answer."""
    return Question(name, pair.text("question"), pair.texts("answer"), passage_ids=(passage.id,), passages=(passage,))


def _context(question: Fields, passages: tuple[Passage, ...]) -> tuple[Passage, ...]:
    if not question.has("context"):
        return passages
    places = question.items("context")
    if not all(type(place) is int and 0 <= place < len(passages) for place in places):
        raise question.error("context", f"positions from 0 to {len(passages) - 1}")
    return tuple(passages[place] for place in dict.fromkeys(places))
