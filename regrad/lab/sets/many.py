"""More passages than the context holds: five notes about each person, each on one fact, each about 110 tokens.

No note's words are those of a question, so BM25 finds a person's five notes and cannot tell which of them answers.
The base reads four at once; its context of 512 tokens does not hold five.
"""

from __future__ import annotations

import random
from functools import cached_property

from regrad.corpus import Passage
from regrad.lab.sets.base import LabSet, SetQuestion, told
from regrad.lab.wording import ATTRIBUTES, QUESTIONS, STATEMENTS
from regrad.lab.world import Person, question

_SENTENCES = 16
_STEM = 4


class Many(LabSet):
    """One fact a note, told again and again."""

    context = 5

    @cached_property
    def _statements(self) -> dict[str, list[str]]:
        """The wordings that share no stem with any question."""
        asked = {stem for wordings in QUESTIONS.values() for wording in wordings for stem in _stems(wording)}
        return {a: [s for s in wordings if not _stems(s) & asked] for a, wordings in STATEMENTS.items()}

    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """One note an attribute."""
        return [
            Passage(
                _note_id(person, attribute), person.name, told(person, [attribute] * _SENTENCES, rng, self._statements)
            )
            for attribute in ATTRIBUTES
        ]

    def ask(self, person: Person, attribute: str, rng: random.Random) -> SetQuestion:
        """A question that one of the person's notes answers; the others are the control."""
        others = tuple(_note_id(person, other) for other in ATTRIBUTES if other != attribute)
        text = question(person, attribute, rng)
        return SetQuestion(text, (person.values[attribute],), (_note_id(person, attribute),), others, attribute)


def _note_id(person: Person, attribute: str) -> str:
    return f"{person.passage_id}.{attribute}"


def _stems(template: str) -> set[str]:
    words = template.replace("?", "").replace(".", "").split()
    return {word[:_STEM].lower() for word in words if len(word) >= _STEM and "{" not in word}
