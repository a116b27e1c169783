"""A question of any set, in the one form that prompts, metrics and reports know."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from regrad.corpus import Passage
from regrad.errors import EvaluationError

Kind = Literal["open", "yes-no", "choice"]

YES_NO = ("yes", "no")

MOST_CHOICES = 26
"""Options have one letter each."""


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers.

    For `choice`, `choices` are the options' texts, labelled A, B, C in their order, and `answers` the right labels. For
    `yes-no`, `choices` are the allowed words and `answers` the right one of them. `passage_ids` are the gold passages
    in the corpus, where they are known; `passages` those that come with the question; `group` names a part of the set.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    kind: Kind = "open"
    choices: tuple[str, ...] = ()
    passage_ids: tuple[str, ...] = ()
    passages: tuple[Passage, ...] = ()
    group: str = ""

    def as_kind(self, kind: Kind, where: str) -> Question:
        """The question asked in another way; raises `EvaluationError` naming `where` if it cannot be.

        Options asked openly leave their texts as the answers; yes or no asked openly leaves the words.
        """
        if kind == self.kind:
            return self
        if kind == "open":
            return replace(self, kind=kind, choices=(), answers=self._texts())
        if kind == "yes-no" and self.kind == "open":
            words = self.choices or YES_NO
            return replace(self, kind=kind, choices=words, answers=_one_of(self.answers, words, where))
        raise EvaluationError(f"{where}: the question is of kind '{self.kind}' and cannot be asked as '{kind}'")

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
        raise EvaluationError(f"{where}: the answer must be one of {', '.join(words)}, found {', '.join(answers):.60}")
    return lowered
