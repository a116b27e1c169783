"""Labs that are hard to retrieve from or to read: contradicting, long and many passages."""

from __future__ import annotations

import random
from functools import cached_property

from regrad.data.passages import Passage
from regrad.lab.sets.base import LabSet, SetQuestion, told
from regrad.lab.wording import ATTRIBUTES, QUESTIONS, STATEMENTS
from regrad.lab.world import Person, passage, question

CURRENT, FORMER = ".new", ".old"
_CHANGED = 3


class Conflict(LabSet):
    """An old and a new passage a person."""

    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """The old one and the new one."""
        versions = ((FORMER, self.former(person)), (CURRENT, person))
        return [
            Passage(person.passage_id + suffix, person.name, told(version, _order(rng), rng, STATEMENTS))
            for suffix, version in versions
        ]

    def former(self, person: Person) -> Person:
        """The person with the values of before; always the same ones."""
        rng = random.Random(f"{person.name}/before")
        values = dict(person.values)
        for attribute in rng.sample(ATTRIBUTES, _CHANGED):
            others = [value for value in self.world.vocabulary[attribute] if value != person.values[attribute]]
            values[attribute] = rng.choice(others)
        return Person(person.name, person.pronoun, values)

    def ask(self, person: Person, attribute: str, rng: random.Random) -> SetQuestion:
        """What holds now; the control is the old passage. The group says whether the two disagree on it."""
        changed = self.former(person).values[attribute] != person.values[attribute]
        return SetQuestion(
            question(person, attribute, rng),
            (person.values[attribute],),
            (person.passage_id + CURRENT,),
            (person.passage_id + FORMER,),
            "changed" if changed else "unchanged",
        )


def _order(rng: random.Random) -> list[str]:
    return rng.sample(ATTRIBUTES, len(ATTRIBUTES))


_TIMES = 3


class Long(LabSet):
    """One long passage a person."""

    context = 5

    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """The person's document, several times over."""
        text = " ".join(passage(person, rng).text for _ in range(_TIMES))
        return [Passage(person.passage_id, person.name, text)]


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
