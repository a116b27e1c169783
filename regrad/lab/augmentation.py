"""What PRAG's augmentation would give for the lab: the tiny model cannot rewrite a passage, but the world can."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from regrad.adaptation.augmented import Augmented, Pair
from regrad.corpus import Passage
from regrad.lab.wording import ATTRIBUTES
from regrad.lab.world import Person, passage, question


def augmented(people: Iterable[Person], passages: Iterable[Passage], pairs: int, seed: int = 31) -> Iterator[Augmented]:
    """Each person's passage with another wording and so many questions, of different attributes as far as there are."""
    for person, text in zip(people, passages, strict=True):
        rng = random.Random(f"{seed}/{person.name}")
        order = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
        asked = [order[number % len(order)] for number in range(pairs)]
        questions = tuple(Pair(question(person, name, rng), person.values[name]) for name in asked)
        yield Augmented(text, (passage(person, rng).text,), questions)
