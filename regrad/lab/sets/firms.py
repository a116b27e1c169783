"""Another domain: firms instead of people, with other facts, other wordings and other questions.

The values and names are of the lab's words (the base knows their tokens), everything around them is new to the base and
to a start that was meta-trained on people: it is there to see what carries over to another domain, and what training on
it gives.
"""

from __future__ import annotations

import random
from functools import cached_property

from regrad.data.passages import Passage
from regrad.lab.sets.base import LabSet, SetQuestion, told
from regrad.lab.wording import ATTRIBUTES
from regrad.lab.world import Person, World

# Keyed by the attribute whose values they take: a seat, an owner, the founder's trade, a partner, a product.
STATEMENTS = {
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
QUESTIONS = {
    "birthplace": ("Where is the seat of {name}?", "In which city is {name} based?"),
    "employer": ("Who owns {name}?", "Which company does {name} belong to?"),
    "occupation": ("Who started {name}?", "What was the trade of the founder of {name}?"),
    "university": ("Who does research with {name}?", "Which university is the partner of {name}?"),
    "hobby": ("What does {name} sell?", "For which pastime does {name} make products?"),
}


class Firms(LabSet):
    """One passage a firm. A firm bears its founder's name: that of somebody of whom no stage but reading has heard."""

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
        return [Passage(person.passage_id, person.name, told(person, order, rng, STATEMENTS))]

    def ask(self, person: Person, attribute: str, rng: random.Random) -> SetQuestion:
        """One question about the firm."""
        text = rng.choice(QUESTIONS[attribute]).format(name=person.name)
        return SetQuestion(text, (person.values[attribute],), (person.passage_id,), group=attribute)

    @cached_property
    def _firms(self) -> tuple[list[Person], list[Person]]:
        """As many as there are people, drawn from the world's words with a stream of their own."""
        return make_firms(self.world)


def make_firms(world: World) -> tuple[list[Person], list[Person]]:
    """Held-out firms and those of meta-training; a function of the world alone."""
    rng = random.Random(f"{' '.join(world.last_names[:5])}/firms")
    names = [person.name for person in rng.sample(world.reading, len(world.held_out) + len(world.meta))]
    firms = [Person(name, "It", {a: rng.choice(world.vocabulary[a]) for a in ATTRIBUTES}) for name in names]
    return firms[: len(world.held_out)], firms[len(world.held_out) :]
