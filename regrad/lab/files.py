"""The files of a lab: passages, questions, training tasks and augmented passages."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regrad.data.augmented import AUGMENTED, Augmented, Pair, encode_augmented
from regrad.data.jsonl import encode_jsonl
from regrad.data.passages import Passage, encode_passages
from regrad.lab.config import LabConfig
from regrad.lab.wording import ATTRIBUTES
from regrad.lab.world import Namesakes, Person, World, passage, question
from regrad.storage import Storage


def augmented(people: Iterable[Person], passages: Iterable[Passage], pairs: int, seed: int = 31) -> Iterator[Augmented]:
    """Each person's passage with another wording and so many questions, of different attributes as far as there are."""
    for person, text in zip(people, passages, strict=True):
        rng = random.Random(f"{seed}/{person.name}")
        order = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
        asked = [order[number % len(order)] for number in range(pairs)]
        questions = tuple(Pair(question(person, name, rng), person.values[name]) for name in asked)
        yield Augmented(text, (passage(person, rng).text,), questions)


CORPUS, QUESTIONS, TASKS, DEV = "corpus.jsonl", "questions.jsonl", "tasks.jsonl", "dev.jsonl"
DOCUMENTS = "documents.jsonl"
DEV_PEOPLE = 100
DEV_RECORDS = 12
QUESTIONS_PER_PERSON = 5
_NAMESAKE_FRACTION = 0.9


@dataclass(frozen=True)
class LabQuestion:
    """A held-out question: who it is about, and the passage of another person as a control."""

    question: str
    answers: tuple[str, ...]
    passage_id: str
    other_passage_id: str


def write_lab(config: LabConfig) -> Storage:
    """Write `corpus.jsonl` (held-out people), `questions.jsonl`, `tasks.jsonl` and `dev.jsonl` (meta people).

    With `config.documents`, also `documents.jsonl`: so many of the meta people's documents, and no questions. With
    `config.augmented`, also `augmented.jsonl`: the corpus with other wordings and so many questions a passage.
    """
    world = World(config.seed)
    storage = Storage(config.output)
    storage.write(CORPUS, encode_passages(held_out_corpus(world)))
    storage.write(QUESTIONS, encode_jsonl(asdict(item) for item in held_out_questions(world, config.questions)))
    training, dev = world.meta[:-DEV_PEOPLE], world.meta[-DEV_PEOPLE:]
    storage.write(TASKS, encode_jsonl(tasks(training, config, config.task_records, seed=11)))
    storage.write(DEV, encode_jsonl(tasks(dev, config, DEV_RECORDS, seed=12)))
    if config.documents:
        storage.write(DOCUMENTS, encode_passages(documents(training[: config.documents])))
    if config.augmented:
        items = augmented(world.held_out, held_out_corpus(world), config.augmented)
        storage.write(AUGMENTED, encode_augmented(items))
    return storage


def held_out_corpus(world: World, seed: int = 21) -> list[Passage]:
    """One passage for each held-out person."""
    return documents(world.held_out, seed)


def documents(people: Sequence[Person], seed: int = 22) -> list[Passage]:
    """One passage for each person."""
    rng = random.Random(seed)
    return [passage(person, rng) for person in people]


def held_out_questions(world: World, count: int, seed: int = 77) -> list[LabQuestion]:
    """Questions about held-out people, cycling through people and attributes."""
    return people_questions(world.held_out, count, seed)


def people_questions(people: Sequence[Person], count: int, seed: int = 77) -> list[LabQuestion]:
    """The same about any people."""
    rng = random.Random(seed)
    questions = []
    for i in range(count):
        person, attribute = people[(i * 7) % len(people)], ATTRIBUTES[i % len(ATTRIBUTES)]
        other = rng.choice([p for p in people if p.values[attribute] != person.values[attribute]])
        text = question(person, attribute, rng)
        questions.append(LabQuestion(text, (person.values[attribute],), person.passage_id, other.passage_id))
    return questions


def tasks(people: list[Person], config: LabConfig, records: int, seed: int) -> Iterable[dict[str, Any]]:
    """Task records: people who mostly share name pieces; a question rests on its person's passage and others'.

    The others (two, if nothing else is said) are, where there are any, such that share a name piece with the person:
    what BM25 retrieves beside.
    """
    rng, namesakes = random.Random(seed), Namesakes(people)
    for number in range(records):
        group = namesake_group(people, namesakes, config.people_per_record, rng)
        three = rng.random() < config.three_passage_fraction
        questions = []
        for i, person in enumerate(group):
            context = [i, *(nearest(group, i, rng)[: config.context_passages - 1] if three else ())]
            for attribute in rng.sample(ATTRIBUTES, QUESTIONS_PER_PERSON):
                asked = question(person, attribute, rng)
                questions.append({"question": asked, "answer": person.values[attribute], "context": context})
        passages = [asdict(passage(person, rng)) for person in group]
        yield {"id": f"{seed}-{number}", "passages": passages, "questions": questions}


def namesake_group(people: Sequence[Person], namesakes: Namesakes, size: int, rng: random.Random) -> list[Person]:
    """Each next person mostly shares a name piece with one who is already there."""
    group: list[Person] = []
    while len(group) < size:
        near = bool(group) and rng.random() < _NAMESAKE_FRACTION
        person = namesakes.sample(rng.choice(group), rng) if near else rng.choice(people)
        if person not in group:
            group.append(person)
    return group


def nearest(group: Sequence[Person], i: int, rng: random.Random) -> list[int]:
    """All others, those first who share a name piece with person i."""
    others = [j for j in range(len(group)) if j != i]
    rng.shuffle(others)
    pieces = set(group[i].name.split())
    return sorted(others, key=lambda j: not pieces & set(group[j].name.split()))
