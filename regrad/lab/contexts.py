"""What the lab's base model is trained on: passages with questions, documents, and memory questions.

A context is built from token ids directly (every name and value is one token), which is exact and fast; each position
has a kind: 0 no loss, 1 language-model loss, 2 answer loss.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from regrad.lab.tokenizer import BOS_ID, EOS_ID
from regrad.lab.wording import ATTRIBUTES, QUESTIONS, STATEMENTS
from regrad.lab.world import Namesakes, Person, World

NO_LOSS, TEXT, ANSWER = 0, 1, 2

Encode = Callable[[str], list[int]]


@dataclass
class TrainingSequence:
    """Token ids, the kind of each, and positions whose hidden state should know a person: (position, first, last)."""

    ids: list[int]
    kinds: list[int]
    entities: list[tuple[int, int, int]] = field(default_factory=list)

    def extend(self, ids: Sequence[int], kind: int) -> None:
        """Append tokens of one kind."""
        self.ids += ids
        self.kinds += [kind] * len(ids)


@dataclass(frozen=True)
class Level:
    """One stage of the curriculum: numbers of passages and of facts each, and how often names are used and shared."""

    passages: tuple[int, ...]
    facts: tuple[int, ...]
    name_probability: float
    namesake_probability: float


CURRICULUM = (
    Level((3, 4, 5), (1,), 1.0, 0.0),
    Level((2, 3, 4), (1, 2), 1.0, 0.3),
    Level((3,), (2, 3), 0.7, 0.5),
    Level((1, 2, 3, 3, 3, 3, 3, 3), (5,), 0.4, 0.5),
)


class ContextSampler:
    """Draws training sequences from one random stream, so that a seed determines them all."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> None:
        self._rng = rng
        self._world = world
        self._namesakes = Namesakes(world.reading)
        encode: Encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False))  # noqa: E731
        words = [*world.first_names, *world.last_names, *world.values]
        self.token = {word: encode(f" {word}")[0] for word in words}
        self._pronoun = {pronoun: encode(f" {pronoun}") for pronoun in ("He", "She")}
        self._statements = {
            attribute: [_split(template, "value", encode) for template in templates]
            for attribute, templates in STATEMENTS.items()
        }
        self._questions = {
            attribute: [_split(f"Question: {t}\nAnswer:", "name", encode) for t in templates]
            for attribute, templates in QUESTIONS.items()
        }
        self._newline, self._passage = encode("\n"), encode("Passage:")

    def context(self, level: Level, questions: int) -> TrainingSequence:
        """Several passages, then up to `questions` questions about them with their answers."""
        rng = self._rng
        count, facts = rng.choice(level.passages), rng.choice(level.facts)
        people = self._people(count, level.namesake_probability)
        asked = rng.sample(ATTRIBUTES, facts)
        out = TrainingSequence([BOS_ID], [NO_LOSS])
        for person in people:
            self._add_passage(out, person, rng.sample(asked, facts), level.name_probability)
        pairs = [(person, attribute) for person in people for attribute in asked]
        rng.shuffle(pairs)
        for position, (person, attribute) in enumerate(pairs[:questions]):
            self._add_question(out, person, attribute, first=position == 0)
        out.extend([EOS_ID], TEXT)
        return out

    def memory_question(self) -> TrainingSequence:
        """A question about a memorised person, with nothing to read."""
        person, attribute = self._rng.choice(self._world.memorised), self._rng.choice(ATTRIBUTES)
        out = TrainingSequence([BOS_ID], [NO_LOSS])
        out.extend(self._question(person, attribute), NO_LOSS)
        out.extend([self.token[person.values[attribute]]], ANSWER)
        out.extend([EOS_ID], TEXT)
        return out

    def document(self, memorised_probability: float = 0.7) -> TrainingSequence:
        """A whole document for language modelling, in the form of the passages that become atoms."""
        memorised = self._rng.random() < memorised_probability
        person = self._rng.choice(self._world.memorised if memorised else self._world.reading)
        body = self._body(person, self._rng.sample(ATTRIBUTES, len(ATTRIBUTES)), 0.4)
        ids = [BOS_ID, *body, EOS_ID]
        return TrainingSequence(ids, [TEXT] * len(ids))

    def _people(self, count: int, namesake_probability: float) -> list[Person]:
        rng = self._rng
        people = [rng.choice(self._world.reading)]
        while len(people) < count:
            namesake = rng.random() < namesake_probability
            person = self._namesakes.sample(rng.choice(people), rng) if namesake else rng.choice(self._world.reading)
            if person not in people:
                people.append(person)
        rng.shuffle(people)
        return people

    def _name(self, person: Person) -> list[int]:
        return [self.token[piece] for piece in person.name.split()]

    def _body(self, person: Person, attributes: Sequence[str], name_probability: float) -> list[int]:
        rng, name = self._rng, self._name(person)
        ids = name + self._newline
        for position, attribute in enumerate(attributes):
            before, after = rng.choice(self._statements[attribute])
            by_name = position == 0 or rng.random() < name_probability
            ids += name if by_name else self._pronoun[person.pronoun]
            ids += [*before, self.token[person.values[attribute]], *after]
        return ids

    def _question(self, person: Person, attribute: str) -> list[int]:
        before, after = self._rng.choice(self._questions[attribute])
        return [*before, *self._name(person), *after]

    def _add_passage(
        self, out: TrainingSequence, person: Person, attributes: list[str], name_probability: float
    ) -> None:
        body = self._body(person, attributes, name_probability)
        out.extend(self._passage, NO_LOSS)
        values = {self.token[person.values[attribute]] for attribute in attributes}
        first, last = self._name(person)
        out.entities += [(len(out.ids) + i, first, last) for i, token in enumerate(body) if token in values]
        out.extend(body, TEXT)
        out.extend(self._newline, NO_LOSS)

    def _add_question(self, out: TrainingSequence, person: Person, attribute: str, first: bool) -> None:
        out.extend([] if first else self._newline, NO_LOSS)
        out.extend(self._question(person, attribute), NO_LOSS)
        first_name, last_name = self._name(person)
        out.entities.append((len(out.ids) - 1, first_name, last_name))
        out.extend([self.token[person.values[attribute]]], ANSWER)


def _split(template: str, slot: str, encode: Encode) -> tuple[list[int], list[int]]:
    """Token ids before and after the slot; the space before the slot belongs to it."""
    before, after = template.removeprefix("{subject}").split(f" {{{slot}}}")
    return encode(before), encode(after)
