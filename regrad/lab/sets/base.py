"""What a harder lab is: its subjects, the passages about each, and questions that rest on some of them."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from regrad.data.passages import Passage
from regrad.lab.world import Person, World, question


@dataclass(frozen=True)
class SetQuestion:
    """A question, the passages that hold its answer, and, as a control, passages that do not.

    `group` names the part of the set that the question belongs to.
    """

    question: str
    answers: tuple[str, ...]
    passage_ids: tuple[str, ...]
    other_passage_ids: tuple[str, ...] = ()
    group: str = ""


class LabSet(ABC):
    """One harder lab. Everything in it is a function of the world, the subject and the random stream."""

    context = 3
    """Number of passages that a question of a meta-training task rests on."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def held_out(self) -> Sequence[Person]:
        """The subjects of the corpus and the questions."""
        return self.world.held_out

    @property
    def meta(self) -> Sequence[Person]:
        """The subjects of the meta-training and dev tasks."""
        return self.world.meta

    @abstractmethod
    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """All passages about one subject."""

    def ask(self, person: Person, attribute: str, rng: random.Random) -> SetQuestion:
        """One question about one subject."""
        return SetQuestion(question(person, attribute, rng), (person.values[attribute],), (person.passage_id,))
