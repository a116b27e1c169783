"""Old and new: two passages about each person that disagree on three facts of five; the newer one is right.

Both are in the corpus, as in an index that was never cleaned. Nothing in their words says which is newer, only their
ids do (`CURRENT`, `FORMER`): the newer ones alone are what index and bank hold after an update.
"""

from __future__ import annotations

import random

from regrad.corpus import Passage
from regrad.lab.sets.base import LabSet, SetQuestion, told
from regrad.lab.wording import ATTRIBUTES, STATEMENTS
from regrad.lab.world import Person, question

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
