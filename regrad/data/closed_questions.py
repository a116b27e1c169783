"""Kind, choices and answers of a record that may be a closed question, the same in question files and in tasks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from regrad.data.questions import MOST_CHOICES, QUESTION_KINDS, YES_NO, Fields, QuestionKind, label
from regrad.text import did_you_mean, nearest_name

_NEAR = 0.8
_TRUTH = {"true": "yes", "false": "no"}


def check_keys(record: Fields, known: tuple[str, ...]) -> None:
    """Raise the record's error for a key that is nearly one of `known`; other keys are passed over."""
    for key in record.fields:
        if near := _misspelt(str(key), known):
            text = f"{record.where}: unknown field '{key:.60}'{did_you_mean(near)}"
            raise record.raises(text, code="unknown_field", where=record.where, field=key, near=near)


@lru_cache(maxsize=1024)
def _misspelt(key: str, known: tuple[str, ...]) -> str:
    """The known key that this one misspells; empty if it is a known one, or another word."""
    if key in known or len(key) > 2 * max(map(len, known)):
        return ""
    plain = "_".join(key.casefold().replace("-", " ").split())
    if plain in known:
        return plain
    near = nearest_name(plain, (name for name in known if len(name) > 2), _NEAR)
    return near if abs(len(near) - len(plain)) <= 1 else ""


def closed(
    record: Fields, field: str, asked_as: QuestionKind | None = None
) -> tuple[QuestionKind, tuple[str, ...], tuple[str, ...]]:
    """Kind, choices and answers (in `field`) of a record; `regrad.data.questions.Question` says what they are.

    The kind is `choice` where there are `choices`, else `open`, unless it is said. With choices, an answer is a text of
    theirs, else a letter or, as a number, a place from 0. With `asked_as`, what the set's settings say, a `kind` that
    is none of ours ("2hop") is passed over; without it, that is an error.
    """
    choices = record.strings("choices") if record.has("choices") and record.fields["choices"] else ()
    kind: QuestionKind = "choice" if choices else "open"
    if record.has("kind") and not (asked_as and record.fields["kind"] not in QUESTION_KINDS):
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


def _letter(record: Fields, field: str, answer: str, choices: Sequence[str]) -> str:
    letters = [label(number) for number in range(len(choices))]
    if answer in choices:
        return letters[choices.index(answer)]
    if answer.isascii() and answer.isdigit() and int(answer) < len(choices):
        return letters[int(answer)]
    if answer.upper() not in letters:
        raise record.error(field, f"one of {', '.join(letters)}, or a text of the choices")
    return answer.upper()
