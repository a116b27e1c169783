"""Old and new: two passages about each person that disagree on three facts of five; the newer one is right.

The newer passage says "Now" before what has changed. Both are in the corpus, as in an index that was never cleaned;
a corpus of the newer passages alone (`CURRENT` in their ids) is what a bank is after an update.
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
        former = self.former(person)
        changed = {a for a in ATTRIBUTES if former.values[a] != person.values[a]}
        now = {a: [f"Now {s}" if a in changed else s for s in wordings] for a, wordings in STATEMENTS.items()}
        return [
            Passage(person.passage_id + FORMER, person.name, told(former, _order(rng), rng, STATEMENTS)),
            Passage(person.passage_id + CURRENT, person.name, told(person, _order(rng), rng, now)),
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
