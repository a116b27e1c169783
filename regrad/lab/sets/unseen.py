"""Unseen wordings: statements and questions as neither the base model nor the lab's meta-training ever saw them.

The tasks of this set keep the lab's own wordings: what is measured is how far they carry.
"""

from __future__ import annotations

import random
from functools import cached_property

from regrad.data.passages import Passage
from regrad.lab.sets.base import LabSet, SetQuestion, told
from regrad.lab.wording import ATTRIBUTES
from regrad.lab.world import Person, passage, question

STATEMENTS = {
    "birthplace": (
        "{subject} is from {value}.",
        "{subject} was born and raised in {value}.",
        "{subject} was brought up in {value}.",
    ),
    "employer": (
        "{subject} works at {value}.",
        "{subject} took a job at {value}.",
        "{subject} has been hired by {value}.",
    ),
    "occupation": (
        "{subject} works as a {value}.",
        "{subject} became a skilled {value}.",
        "{subject} was trained as a {value}.",
    ),
    "university": (
        "{subject} has a degree from {value}.",
        "{subject} was a student at {value}.",
        "{subject} once studied at {value}.",
    ),
    "hobby": (
        "{subject} really enjoys {value}.",
        "{subject} spends evenings on {value}.",
        "{subject} is keen on {value}.",
    ),
}
QUESTIONS = {
    "birthplace": (
        "In what city was {name} born?",
        "Where exactly was {name} born?",
        "Where is the birthplace of {name}?",
    ),
    "employer": (
        "Which company employs {name}?",
        "What company does {name} work for?",
        "What company hired {name}?",
    ),
    "occupation": (
        "What profession does {name} have?",
        "Which occupation does {name} have?",
        "And what is the occupation of {name}?",
    ),
    "university": (
        "At which university did {name} study?",
        "What university did {name} attend?",
        "And where did {name} study?",
    ),
    "hobby": (
        "What hobby does {name} enjoy?",
        "What pastime does {name} love?",
        "Which pastime does {name} enjoy?",
    ),
}
_GROUPS = ("statements", "questions", "both")


class Unseen(LabSet):
    """A third of the people have unseen statements, a third unseen questions, a third both."""

    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """One passage a person, in the lab's words or in unseen ones."""
        if self._group(person) in ("", "questions"):
            return [passage(person, rng)]
        order = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
        return [Passage(person.passage_id, person.name, told(person, order, rng, STATEMENTS))]

    def ask(self, person: Person, attribute: str, rng: random.Random) -> SetQuestion:
        """One question; the group says what of it is unseen."""
        group = self._group(person)
        text = question(person, attribute, rng)
        if group in ("questions", "both"):
            text = rng.choice(QUESTIONS[attribute]).format(name=person.name)
        return SetQuestion(text, (person.values[attribute],), (person.passage_id,), group=group)

    def _group(self, person: Person) -> str:
        """A third of the held-out people each; nobody of meta-training."""
        return _GROUPS[self._number[person.name] % len(_GROUPS)] if person.name in self._number else ""

    @cached_property
    def _number(self) -> dict[str, int]:
        return {person.name: number for number, person in enumerate(self.world.held_out)}
