"""Labs in other words: people in unseen wordings, and another domain, firms instead of people.

Unseen wordings: statements and questions that neither the base model nor the lab's meta-training has seen. Its tasks
keep the lab's own wordings: what is measured is how far they carry. Firms have other facts, wordings and questions; the
values and names are the lab's words (the base knows their tokens), everything around them is new to the base and to a
start that was meta-trained on people. They show what carries over to another domain, and what training on it gives.
"""

from __future__ import annotations

import random
from functools import cached_property

from regrad.data.passages import Passage
from regrad.lab.sets.base import LabSet, SetQuestion
from regrad.lab.wording import ATTRIBUTES
from regrad.lab.world import Person, facts, passage, question

UNSEEN_STATEMENTS = {
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
UNSEEN_QUESTIONS = {
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
        return [Passage(person.passage_id, person.name, facts(person, order, rng, UNSEEN_STATEMENTS))]

    def ask(self, person: Person, attribute: str, rng: random.Random) -> SetQuestion:
        """One question; the group says what of it is unseen."""
        group = self._group(person)
        text = question(person, attribute, rng)
        if group in ("questions", "both"):
            text = rng.choice(UNSEEN_QUESTIONS[attribute]).format(name=person.name)
        return SetQuestion(text, (person.values[attribute],), (person.passage_id,), group=group)

    def _group(self, person: Person) -> str:
        """A third of the held-out people each; none of those of meta-training."""
        return _GROUPS[self._number[person.name] % len(_GROUPS)] if person.name in self._number else ""

    @cached_property
    def _number(self) -> dict[str, int]:
        return {person.name: number for number, person in enumerate(self.world.held_out)}


# Keyed by the attribute whose values they take: a seat, an owner, the founder's trade, a partner, a product.
FIRM_STATEMENTS = {
    "birthplace": (
        "{subject} has its seat in {value}.",
        "{subject} is based in {value}.",
        "{subject} runs a factory in {value}.",
        "{subject} moved to {value}.",
    ),
    "employer": (
        "{subject} is owned by {value}.",
        "{subject} was bought by {value}.",
        "{subject} belongs to {value}.",
        "{subject} was sold to {value}.",
    ),
    "occupation": (
        "{subject} was started by a {value}.",
        "{subject} is led by a {value}.",
        "{subject} was the idea of a {value}.",
        "{subject} is in the hands of a {value}.",
    ),
    "university": (
        "{subject} does research with {value}.",
        "{subject} finds its staff at {value}.",
        "{subject} has a laboratory at {value}.",
        "{subject} pays for a chair at {value}.",
    ),
    "hobby": (
        "{subject} sells equipment for {value}.",
        "{subject} makes everything for {value}.",
        "{subject} is known for its products for {value}.",
        "{subject} grew rich with {value}.",
    ),
}
FIRM_QUESTIONS = {
    "birthplace": ("Where is the seat of {name}?", "In which city is {name} based?"),
    "employer": ("Who owns {name}?", "Which company does {name} belong to?"),
    "occupation": ("Who started {name}?", "What was the trade of the founder of {name}?"),
    "university": ("Who does research with {name}?", "Which university is the partner of {name}?"),
    "hobby": ("What does {name} sell?", "For which pastime does {name} make products?"),
}


class Firms(LabSet):
    """One passage per firm. A firm has the name of a person of the reading split, whom no other stage has seen."""

    @property
    def held_out(self) -> list[Person]:
        """The firms of the corpus and the questions."""
        return self._firms[0]

    @property
    def meta(self) -> list[Person]:
        """The firms of the tasks."""
        return self._firms[1]

    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """The firm's document."""
        order = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
        return [Passage(person.passage_id, person.name, facts(person, order, rng, FIRM_STATEMENTS))]

    def ask(self, person: Person, attribute: str, rng: random.Random) -> SetQuestion:
        """One question about the firm."""
        text = rng.choice(FIRM_QUESTIONS[attribute]).format(name=person.name)
        return SetQuestion(text, (person.values[attribute],), (person.passage_id,), group=attribute)

    @cached_property
    def _firms(self) -> tuple[list[Person], list[Person]]:
        """Held-out firms and those of meta-training, as many as there are people; a function of the world alone."""
        world = self.world
        # A stream of its own, so that the firms leave the people of a world as they are.
        rng = random.Random(f"{' '.join(world.last_names[:5])}/firms")
        names = [person.name for person in rng.sample(world.reading, len(world.held_out) + len(world.meta))]
        firms = [Person(name, "It", {a: rng.choice(world.vocabulary[a]) for a in ATTRIBUTES}) for name in names]
        return firms[: len(world.held_out)], firms[len(world.held_out) :]
