"""The lab's people: who they are, which of them each stage may see, and how they are written about.

Everything is a pure function of one seed. Names combine 150 first and 400 last names, so that the model knows the name
pieces of a held-out person but not the person.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regrad.data.passages import Passage
from regrad.lab.wording import ATTRIBUTES, HOBBIES, OCCUPATIONS, QUESTIONS, STATEMENTS

_SYLLABLES = {
    "C": [*"bdfgklmnprstvz", "br", "dr", "kr", "tr", "st", "th", "sh"],
    "V": [*"aeiou", "ai", "ea"],
    "E": [*"nrlskm", "th", "x", "nd"],
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
    """Numbers of people: memorised in pre-training, for meta-training, held out. Pre-training reads about the rest."""

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
        people: list[Person] = []
        for name in names:
            pronoun = rng.choice(["He", "She"])
            values = {attribute: rng.choice(self.vocabulary[attribute]) for attribute in ATTRIBUTES}
            people.append(Person(name, pronoun, values))
        a, b, c = itertools.accumulate((split.held_out, split.meta, split.memorised))
        self.held_out, self.meta = people[:a], people[a:b]
        self.memorised, self.reading = people[b:c], people[c:]

    @property
    def values(self) -> list[str]:
        """Every attribute value that exists."""
        return [value for attribute in ATTRIBUTES for value in self.vocabulary[attribute]]


class Namesakes:
    """People who share a first or a last name, whose passages BM25 confuses."""

    def __init__(self, people: Sequence[Person]) -> None:
        self._by_piece: dict[str, list[Person]] = defaultdict(list)
        for person in people:
            for piece in person.name.split():
                self._by_piece[piece].append(person)

    def sample(self, person: Person, rng: random.Random) -> Person:
        """A person with the same first or last name (chosen at random), possibly the same person."""
        return rng.choice(self._by_piece[rng.choice(person.name.split())])


def passage(person: Person, rng: random.Random, name_probability: float = 0.4) -> Passage:
    """This person's document: five facts in random order and wording, mostly by pronoun after the first."""
    attributes = list(ATTRIBUTES)
    rng.shuffle(attributes)
    return Passage(person.passage_id, person.name, facts(person, attributes, rng, STATEMENTS, name_probability))


def facts(
    person: Person,
    attributes: Sequence[str],
    rng: random.Random,
    statements: Mapping[str, Sequence[str]],
    name_probability: float = 0.4,
) -> str:
    """One sentence for each attribute, in this order: the first by name, the others mostly by pronoun."""
    sentences = []
    for position, attribute in enumerate(attributes):
        subject = person.name if position == 0 or rng.random() < name_probability else person.pronoun
        sentences.append(rng.choice(statements[attribute]).format(subject=subject, value=person.values[attribute]))
    return " ".join(sentences)


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
