"""Longer passages: all five facts of a person told three times over in fresh words, about 130 tokens.

The base reads three of them at once; its context of 512 tokens does not hold four of the longest, nor five at all.
"""

from __future__ import annotations

import random

from regrad.corpus import Passage
from regrad.lab.sets.base import LabSet
from regrad.lab.world import Person, passage

_TIMES = 3


class Long(LabSet):
    """One long passage a person."""

    context = 5

    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """The person's document, several times over."""
        text = " ".join(passage(person, rng).text for _ in range(_TIMES))
        return [Passage(person.passage_id, person.name, text)]
