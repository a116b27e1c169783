"""Small augmented passages for tests."""

from __future__ import annotations

import random

from regrad.data.augmented import Augmented, Pair
from regrad.lab.wording import ATTRIBUTES
from regrad.lab.world import World, passage, question


def augmented(world: World, count: int, seed: int = 0, pairs: int = 3) -> list[Augmented]:
    """Held-out people, each with one other wording and some questions."""
    rng = random.Random(seed)
    items = []
    for person in world.held_out[:count]:
        asked = [Pair(question(person, name, rng), person.values[name]) for name in rng.sample(ATTRIBUTES, pairs)]
        items.append(Augmented(passage(person, rng), (passage(person, rng).text,), tuple(asked)))
    return items
