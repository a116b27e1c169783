"""Harder labs: the same base model, other people or other texts, where reading from a prompt is no longer enough.

Each is a class here and an entry of `SETS`; `regrad lab world --set variant=NAME` writes it in the lab's own formats.
Some are hard to retrieve from or to read: many passages, long ones, contradictory ones. Others are in other words.
Unseen wordings: statements and questions that neither the base model nor the lab's meta-training has seen. Its tasks
keep the lab's own wordings: what is measured is how far they carry. Firms have other facts, wordings and questions; the
values and names are the lab's words (the base knows their tokens), everything around them is new to the base and to a
start that was meta-trained on people. They show what carries over to another domain, and what training on it gives.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from regrad.data.passages import Passage
from regrad.errors import ConfigError
from regrad.lab.wording import ATTRIBUTES, QUESTIONS, STATEMENTS
from regrad.lab.world import Person, World, facts, passage, question
from regrad.registry import Registry


@dataclass(frozen=True)
class LabQuestion:
    """A question, the passages that hold its answer, and, as a control, passages that do not.

    `group` names the part of the set that the question belongs to. It is no `Question`, which knows no control: that is
    what is read from the file that is written of these.
    """

    question: str
    answers: tuple[str, ...]
    passage_ids: tuple[str, ...]
    other_passage_ids: tuple[str, ...] = ()
    group: str = ""

    @property
    def passage_id(self) -> str:
        """The passage that holds the answer, where there is one."""
        return self.passage_ids[0]

    @property
    def other_passage_id(self) -> str:
        """The control, where there is one."""
        return self.other_passage_ids[0]

    def to_record(self) -> dict[str, Any]:
        """A line of the question file of the lab whose questions have one passage and one control."""
        passages = {"passage_id": self.passage_id, "other_passage_id": self.other_passage_id}
        return {"question": self.question, "answers": self.answers, **passages}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> LabQuestion:
        """The inverse of `to_record`."""
        passages = ((record["passage_id"],), (record["other_passage_id"],))
        return LabQuestion(record["question"], tuple(record["answers"]), *passages)


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

    def ask(self, person: Person, attribute: str, rng: random.Random) -> LabQuestion:
        """One question about one subject."""
        return LabQuestion(question(person, attribute, rng), (person.values[attribute],), (person.passage_id,))


CURRENT, FORMER = ".new", ".old"
_CHANGED = 3  # attributes of a person with a former value
_TIMES = 3  # documents in a long passage
_SENTENCES = 16  # in a note
_STEM = 4  # letters


class Conflict(LabSet):
    """An old and a new passage for each person."""

    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """The old one and the new one."""
        versions = ((FORMER, self.former(person)), (CURRENT, person))
        passages: list[Passage] = []
        for suffix, version in versions:
            order = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
            passages.append(Passage(person.passage_id + suffix, person.name, facts(version, order, rng, STATEMENTS)))
        return passages

    def former(self, person: Person) -> Person:
        """The person with former values, which are a function of the name."""
        rng = random.Random(f"{person.name}/before")
        values = dict(person.values)
        for attribute in rng.sample(ATTRIBUTES, _CHANGED):
            others = [value for value in self.world.vocabulary[attribute] if value != person.values[attribute]]
            values[attribute] = rng.choice(others)
        return Person(person.name, person.pronoun, values)

    def ask(self, person: Person, attribute: str, rng: random.Random) -> LabQuestion:
        """Asks for the current value; the control is the old passage. The group says whether the two disagree."""
        changed = self.former(person).values[attribute] != person.values[attribute]
        return LabQuestion(
            question(person, attribute, rng),
            (person.values[attribute],),
            (person.passage_id + CURRENT,),
            (person.passage_id + FORMER,),
            "changed" if changed else "unchanged",
        )


class Long(LabSet):
    """One long passage for each person."""

    context = 5

    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """The person's document, several times over."""
        text = " ".join(passage(person, rng).text for _ in range(_TIMES))
        return [Passage(person.passage_id, person.name, text)]


class Many(LabSet):
    """One note for each attribute, which states the fact again and again."""

    context = 5

    @cached_property
    def _statements(self) -> dict[str, list[str]]:
        """The wordings that share no stem with any question."""
        asked = {stem for wordings in QUESTIONS.values() for wording in wordings for stem in _stems(wording)}
        return {a: [s for s in wordings if not _stems(s) & asked] for a, wordings in STATEMENTS.items()}

    def passages(self, person: Person, rng: random.Random) -> list[Passage]:
        """One note for each attribute."""
        return [
            Passage(
                _note_id(person, attribute), person.name, facts(person, [attribute] * _SENTENCES, rng, self._statements)
            )
            for attribute in ATTRIBUTES
        ]

    def ask(self, person: Person, attribute: str, rng: random.Random) -> LabQuestion:
        """A question that one of the person's notes answers; the others are the control."""
        others = tuple(_note_id(person, other) for other in ATTRIBUTES if other != attribute)
        text = question(person, attribute, rng)
        return LabQuestion(text, (person.values[attribute],), (_note_id(person, attribute),), others, attribute)


def _note_id(person: Person, attribute: str) -> str:
    return f"{person.passage_id}.{attribute}"


def _stems(template: str) -> set[str]:
    words = template.replace("?", "").replace(".", "").split()
    return {word[:_STEM].lower() for word in words if len(word) >= _STEM and "{" not in word}


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

    def ask(self, person: Person, attribute: str, rng: random.Random) -> LabQuestion:
        """One question; the group says what of it is unseen."""
        group = self._group(person)
        text = question(person, attribute, rng)
        if group in ("questions", "both"):
            text = rng.choice(UNSEEN_QUESTIONS[attribute]).format(name=person.name)
        return LabQuestion(text, (person.values[attribute],), (person.passage_id,), group=group)

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

    def ask(self, person: Person, attribute: str, rng: random.Random) -> LabQuestion:
        """One question about the firm."""
        text = rng.choice(FIRM_QUESTIONS[attribute]).format(name=person.name)
        return LabQuestion(text, (person.values[attribute],), (person.passage_id,), group=attribute)

    @cached_property
    def _firms(self) -> tuple[list[Person], list[Person]]:
        """Held-out firms and those of meta-training, as many as there are people; a function of the world alone."""
        world = self.world
        # A stream of its own, so that the firms leave the people of a world as they are.
        rng = random.Random(f"{' '.join(world.last_names[:5])}/firms")
        names = [person.name for person in rng.sample(world.reading, len(world.held_out) + len(world.meta))]
        firms = [Person(name, "It", {a: rng.choice(world.vocabulary[a]) for a in ATTRIBUTES}) for name in names]
        return firms[: len(world.held_out)], firms[len(world.held_out) :]


SETS: Registry[type[LabSet]] = Registry(
    "lab set",
    ConfigError,
    {"many": Many, "long": Long, "conflict": Conflict, "unseen": Unseen, "firms": Firms},
)
