"""Labs that are hard to retrieve from or to read: contradictory, long and many passages."""

from __future__ import annotations

import random
from functools import cached_property

from regrad.data.passages import Passage
from regrad.lab.sets.base import LabSet, SetQuestion
from regrad.lab.wording import ATTRIBUTES, QUESTIONS, STATEMENTS
from regrad.lab.world import Person, facts, passage, question

CURRENT, FORMER = ".new", ".old"
_CHANGED = 3  # attributes of a person with a former value
_TIMES = 3  # documents in a long passage
_SENTENCES = 16  # in a note
_STEM = 4  # letters


class Conflict(LabSet):
    """An old and a new passage for each person."""

    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """The old one and the new one."""
        versions = ((FORMER, self.former(person)), (CURRENT, person))
        passages: list[Passage] = []
        for suffix, version in versions:
            order = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
            passages.append(Passage(person.passage_id + suffix, person.name, facts(version, order, rng, STATEMENTS)))
        return passages

    def former(self, person: Person) -> Person:
        """The person with former values, which are a function of the name."""
        rng = random.Random(f"{person.name}/before")
        values = dict(person.values)
        for attribute in rng.sample(ATTRIBUTES, _CHANGED):
            others = [value for value in self.world.vocabulary[attribute] if value != person.values[attribute]]
            values[attribute] = rng.choice(others)
        return Person(person.name, person.pronoun, values)

    def ask(self, person: Person, attribute: str, rng: random.Random) -> SetQuestion:
        """Asks for the current value; the control is the old passage. The group says whether the two disagree."""
        changed = self.former(person).values[attribute] != person.values[attribute]
        return SetQuestion(
            question(person, attribute, rng),
            (person.values[attribute],),
            (person.passage_id + CURRENT,),
            (person.passage_id + FORMER,),
            "changed" if changed else "unchanged",
        )


class Long(LabSet):
    """One long passage for each person."""

    context = 5

    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """The person's document, several times over."""
        text = " ".join(passage(person, rng).text for _ in range(_TIMES))
        return [Passage(person.passage_id, person.name, text)]


class Many(LabSet):
    """One note for each attribute, which states the fact again and again."""

    context = 5

    @cached_property
    def _statements(self) -> dict[str, list[str]]:
        """The wordings that share no stem with any question."""
        asked = {stem for wordings in QUESTIONS.values() for wording in wordings for stem in _stems(wording)}
        return {a: [s for s in wordings if not _stems(s) & asked] for a, wordings in STATEMENTS.items()}

    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """One note for each attribute."""
        return [
            Passage(
                _note_id(person, attribute), person.name, facts(person, [attribute] * _SENTENCES, rng, self._statements)
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
