"""The lab's people: who they are, which of them each stage may see, and how they are written about.

Everything is a pure function of one seed. Names recombine 150 first and 400 last names, so that a
held-out person's name pieces are known to the model and the person is not.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from regrad.data.passages import Passage
from regrad.lab.wording import ATTRIBUTES, HOBBIES, OCCUPATIONS, QUESTIONS, STATEMENTS

_SYLLABLES = {
    "C": [
        "b",
        "d",
        "f",
        "g",
        "k",
        "l",
        "m",
        "n",
        "p",
        "r",
        "s",
        "t",
        "v",
        "z",
        "br",
        "dr",
        "kr",
        "tr",
        "st",
        "th",
        "sh",
    ],
    "V": ["a", "e", "i", "o", "u", "ai", "ea"],
    "E": ["n", "r", "l", "s", "k", "m", "th", "x", "nd"],
}
_MAX_WORD_LENGTH = 11


@dataclass(frozen=True)
class Person:
    """One invented person: a full name, a pronoun ("He" or "She") and one value per attribute."""

    name: str
    pronoun: str
    values: dict[str, str]

    @property
    def passage_id(self) -> str:
        """The stable passage id of this person's document."""
        return self.name.lower().replace(" ", "-")


@dataclass(frozen=True)
class Split:
    """How many people each stage has: memorised in pre-training, meta-training, held out; the rest are for reading."""

    memorised: int = 300
    meta: int = 8000
    held_out: int = 400


class World:
    """All people of the lab, by split: `memorised`, `meta`, `held_out`, `reading` (disjoint)."""

    def __init__(self, seed: int = 0, split: Split = Split()) -> None:
        rng = random.Random(seed)
        used: set[str] = set()
        self.first_names = _words(150, rng, "CVE", used, ("a", "o", "i", ""))
        self.last_names = _words(400, rng, "CVCVE", used)
        self.vocabulary = {
            "birthplace": _words(60, rng, "CVE", used, ("burg", "ville", "ton", "port")),
            "employer": _words(50, rng, "CV", used, ("corp", "tek", "soft", "works")),
            "university": _words(40, rng, "CVE", used, ("ford", "bridge", "hall")),
            "occupation": list(OCCUPATIONS),
            "hobby": list(HOBBIES),
        }
        names = [f"{first} {last}" for first, last in itertools.product(self.first_names, self.last_names)]
        rng.shuffle(names)
        people = [self._person(name, rng) for name in names]
        ends = itertools.accumulate((split.held_out, split.meta, split.memorised))
        a, b, c = ends
        self.held_out, self.meta = people[:a], people[a:b]
        self.memorised, self.reading = people[b:c], people[c:]

    def _person(self, name: str, rng: random.Random) -> Person:
        pronoun = rng.choice(["He", "She"])
        return Person(name, pronoun, {attribute: rng.choice(self.vocabulary[attribute]) for attribute in ATTRIBUTES})

    @property
    def values(self) -> list[str]:
        """Every attribute value that exists."""
        return [value for attribute in ATTRIBUTES for value in self.vocabulary[attribute]]


class Namesakes:
    """Who shares a first or a last name with whom: the passages that BM25 confuses."""

    def __init__(self, people: Sequence[Person]) -> None:
        self.people = people

    @cached_property
    def _by_piece(self) -> dict[str, list[Person]]:
        by_piece: dict[str, list[Person]] = defaultdict(list)
        for person in self.people:
            for piece in person.name.split():
                by_piece[piece].append(person)
        return by_piece

    def sample(self, person: Person, rng: random.Random) -> Person:
        """One person (maybe the same one) who shares a randomly chosen name piece."""
        return rng.choice(self._by_piece[rng.choice(person.name.split())])


def passage(person: Person, rng: random.Random, name_probability: float = 0.4) -> Passage:
    """This person's document: five facts in random order and wording, mostly by pronoun after the first."""
    attributes = list(ATTRIBUTES)
    rng.shuffle(attributes)
    sentences = []
    for position, attribute in enumerate(attributes):
        subject = person.name if position == 0 or rng.random() < name_probability else person.pronoun
        sentences.append(rng.choice(STATEMENTS[attribute]).format(subject=subject, value=person.values[attribute]))
    return Passage(person.passage_id, person.name, " ".join(sentences))


def question(person: Person, attribute: str, rng: random.Random) -> str:
    """One wording of the question for `attribute` of `person`."""
    return rng.choice(QUESTIONS[attribute]).format(name=person.name)


def _words(n: int, rng: random.Random, pattern: str, used: set[str], suffixes: Sequence[str] = ("",)) -> list[str]:
    words: list[str] = []
    while len(words) < n:
        stem = "".join(rng.choice(_SYLLABLES[kind]) for kind in pattern)
        word = (stem + rng.choice(suffixes)).capitalize()
        if word not in used and len(word) <= _MAX_WORD_LENGTH:
            used.add(word)
            words.append(word)
    return words
