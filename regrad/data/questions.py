"""A question with its answers, kind and choices, and the fields of the record that it is read from."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from regrad.data.field_names import listed_names
from regrad.data.jsonl import as_found
from regrad.data.passages import Passage
from regrad.errors import EvaluationError, RegradError

QuestionKind = Literal["open", "yes-no", "choice"]
"""How a question is answered: in free text, with one of a few allowed words, or with the letter of an option."""
QUESTION_KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)

ClosedReader = Literal["strict", "release"]
"""Which rules read the answer to a closed question in a text (regrad.evaluation.answer_parsing)."""
CLOSED_READERS: tuple[ClosedReader, ...] = get_args(ClosedReader)

YES_NO = ("yes", "no")

MOST_CHOICES = 26
"""Options have one letter each."""


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (the SQuAD evaluation script's rules)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


Turns = tuple[tuple[str, str], ...]
"""What was said before, in order: (role, content), where the role is user or assistant."""


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers: what every prompt is written of and every answer is scored by.

    For `choice`, `choices` are the options' texts, labelled A, B, C in their order, and `answers` the right labels. For
    `yes-no`, `choices` are the allowed words and `answers` the right one of them. `passage_ids` are the gold passages
    in the corpus, where they are known; `passages` those that come with the question; `group` names a part of the set.
    `turns` (role, content) of a conversation came before the question.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    kind: QuestionKind = "open"
    choices: tuple[str, ...] = ()
    passage_ids: tuple[str, ...] = ()
    passages: tuple[Passage, ...] = ()
    group: str = ""
    turns: Turns = ()

    @property
    def normalised(self) -> str:
        """What two questions have in common that ask the same: the normalised text, of a choice with its options."""
        return normalise(" ".join((self.question, *(self.choices if self.kind == "choice" else ()))))

    @property
    def query(self) -> str:
        """What is searched for: the question, and then what was said before it, the latest first."""
        return self.query_with("")

    def query_with(self, addition: str) -> str:
        """As `query`, with more text directly behind the question."""
        # An encoder, or a cross-encoder, reads the beginning of a long text: what is cut off is the oldest.
        return "\n".join([self.question + addition, *(content for _, content in reversed(self.turns))])

    def as_kind(self, kind: QuestionKind, where: str, words: tuple[str, ...] = YES_NO) -> Question:
        """The question asked in another way; raises `EvaluationError` naming `where` if it cannot be.

        As an open question, a choice has the texts of the right options as its answers, and yes-no its words. An open
        question that is asked as yes-no has `words` to choose from.
        """
        if kind == self.kind:
            return self
        if kind == "open":
            return replace(self, kind=kind, choices=(), answers=self._texts())
        if kind == "yes-no" and self.kind == "open":
            words = self.choices or words
            return replace(self, kind=kind, choices=words, answers=_one_of(self.answers, words, where))
        raise EvaluationError(
            f"{where}: the question is of kind '{self.kind}' and cannot be asked as '{kind}'",
            code="other_kind",
            where=where,
            found=self.kind,
            wanted=kind,
        )

    def _texts(self) -> tuple[str, ...]:
        if self.kind != "choice":
            return self.answers
        return tuple(text for letter, text in labelled(self.choices) if letter in self.answers)


def label(number: int) -> str:
    """The letter of an option by its place: 0 is A."""
    return chr(ord("A") + number)


def labelled(choices: tuple[str, ...]) -> list[tuple[str, str]]:
    """(letter, text) of each option."""
    return [(label(number), text) for number, text in enumerate(choices)]


def _one_of(answers: tuple[str, ...], words: tuple[str, ...], where: str) -> tuple[str, ...]:
    lowered = tuple(answer.lower() for answer in answers)
    if not set(lowered) <= set(words):
        raise EvaluationError(
            f"{where}: the answer must be one of {', '.join(words)}, found {', '.join(answers):.60}",
            code="wrong_answer",
            where=where,
            found=list(answers),
        )
    return lowered


Word = TypeVar("Word", bound=str)


@dataclass(frozen=True)
class Fields:
    """The fields of one record, where it is (file and number), and its key if it was an entry of a mapping."""

    where: str
    fields: Mapping[str, Any]
    key: str = ""
    raises: type[RegradError] = EvaluationError

    def error(self, field: str, expected: str) -> RegradError:
        """What to raise for a field that is missing or wrong."""
        if field not in self.fields:
            text = f"is missing ({expected} is expected; it has {listed_names(self.fields)})"
            return self.raises(
                f"{self.where}: field '{field}' {text}", code="missing_field", where=self.where, field=field
            )
        text = f"must be {expected}, found {as_found(self.fields[field])}"
        return self.raises(f"{self.where}: field '{field}' {text}", code="wrong_field", where=self.where, field=field)

    def has(self, field: str) -> bool:
        """Whether the field is present, and neither null nor NaN, which tables write for it."""
        value = self.fields.get(field)
        return value is not None and not (isinstance(value, float) and math.isnan(value))

    def text(self, field: str) -> str:
        """A non-empty string; a number counts as one."""
        found = _plain(self.fields.get(field))
        if not found:
            raise self.error(field, "a non-empty string")
        return found

    def maybe(self, field: str) -> str:
        """As `text`, or an empty string if the field is absent."""
        return self.text(field) if self.has(field) and self.fields[field] != "" else ""

    def texts(self, field: str) -> tuple[str, ...]:
        """The distinct non-empty strings of a list, at least one; a single string counts as a list of one."""
        value = self.fields.get(field)
        items = value if isinstance(value, (list, tuple)) else [value]
        found = [_plain(item) for item in items]
        if not any(found) or any(text is None and item is not None for text, item in zip(found, items, strict=True)):
            raise self.error(field, "a non-empty string, or a list of them")
        return tuple(dict.fromkeys(text for text in found if text))

    def strings(self, field: str) -> tuple[str, ...]:
        """All strings of a list: none may be empty, and they may repeat."""
        found = [_plain(item) for item in self.items(field)]
        if not found or not all(found):
            raise self.error(field, "a list of non-empty strings")
        return tuple(text or "" for text in found)

    def maybe_texts(self, field: str) -> tuple[str, ...]:
        """As `texts`, or nothing if the field is absent or empty."""
        return self.texts(field) if self.has(field) and self.fields[field] else ()

    def items(self, field: str) -> list[Any]:
        """A list of anything."""
        value = self.fields.get(field)
        if not isinstance(value, list):
            raise self.error(field, "a list")
        return value

    def flag(self, field: str) -> bool:
        """A zero or a one."""
        value = self.fields.get(field)
        if isinstance(value, str) or value not in (0, 1):
            raise self.error(field, "0 or 1")
        return bool(value)

    def flags(self, field: str, count: int) -> list[bool]:
        """That many zeros and ones."""
        values = self.items(field)
        if len(values) != count or any(isinstance(value, str) or value not in (0, 1) for value in values):
            raise self.error(field, f"a list of {count} zeros and ones, one for each passage")
        return [value == 1 for value in values]

    def records(self, field: str) -> list[Fields]:
        """A list of objects, as records."""
        return [self._inner(f"{field}[{i}]", item) for i, item in enumerate(self.items(field))]

    def record(self, field: str) -> Fields:
        """One object, as a record."""
        if field not in self.fields:
            raise self.error(field, "an object")
        return self._inner(field, self.fields[field])

    def pairs(self, field: str) -> list[tuple[str, Any]]:
        """A list of [string, anything], as in HotpotQA's `context` and `supporting_facts`."""
        for item in self.items(field):
            if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], str):
                raise self.error(field, "a list of [title, ...] pairs")
        return [(item[0], item[1]) for item in self.items(field)]

    def json_texts(self, field: str) -> tuple[str, ...]:
        """A cell of a table that holds a JSON list of strings."""
        try:
            value = json.loads(self.text(field))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, list):
            raise self.error(field, "a JSON list of strings")
        return Fields(self.where, {field: value}).texts(field)

    def number(self, field: str, below: int) -> int:
        """A whole number from 0 to `below` - 1, also one written as a string."""
        found = _plain(self.fields.get(field)) or ""
        if not (found.isascii() and found.isdigit()) or int(found) >= below:
            raise self.error(field, f"a whole number from 0 to {below - 1}")
        return int(found)

    def word(self, field: str, words: Sequence[Word]) -> Word:
        """One of `words`, in any case; a list of one counts, too."""
        found = self.texts(field)[0].lower().rstrip(".")
        for word in words:
            if word == found:
                return word
        raise self.error(field, f"one of {', '.join(words)}")

    def _inner(self, name: str, value: Any) -> Fields:
        if not isinstance(value, dict):
            text = f"{self.where}: '{name}' must be an object, found {as_found(value)}"
            raise self.raises(text, code="wrong_field", where=self.where, field=name)
        return Fields(f"{self.where}, {name}", value, raises=self.raises)


def _plain(value: Any) -> str | None:
    """The string without blanks around it, or None for what cannot be text.

    A whole float is written as the integer that it was before a table had an empty cell in its column.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() else value
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return None if "\x00" in text else text
