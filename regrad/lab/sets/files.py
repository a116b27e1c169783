"""A harder lab as files: corpus, questions, meta-training and dev tasks, in the formats of the lab's own."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from regrad.data.jsonl import encode_jsonl
from regrad.data.passages import Passage, encode_passages
from regrad.lab.config import LabConfig
from regrad.lab.files import (
    CORPUS,
    DEV,
    DEV_PEOPLE,
    DEV_RECORDS,
    QUESTIONS,
    QUESTIONS_PER_PERSON,
    TASKS,
    namesake_group,
    nearest,
)
from regrad.lab.sets import SETS
from regrad.lab.sets.base import LabSet, SetQuestion
from regrad.lab.wording import ATTRIBUTES
from regrad.lab.world import Namesakes, Person, World
from regrad.storage import Storage


def write_hard_lab(config: LabConfig) -> Storage:
    """Write the four files of the harder lab that `config.variant` names: those of `write_lab`.

    `questions.jsonl` has lists where the lab has one passage (`passage_ids`, `other_passage_ids`), and a `group`.
    """
    lab = SETS[config.variant](World(config.seed))
    storage = Storage(config.output)
    storage.write(CORPUS, encode_passages(set_corpus(lab)))
    storage.write(QUESTIONS, encode_jsonl(asdict(item) for item in set_questions(lab, config.questions)))
    training, dev, size = lab.meta[:-DEV_PEOPLE], lab.meta[-DEV_PEOPLE:], config.people_per_record
    storage.write(
        TASKS, encode_jsonl(_named(config.variant, set_tasks(lab, training, config.task_records, size, seed=11)))
    )
    storage.write(DEV, encode_jsonl(_named(config.variant, set_tasks(lab, dev, DEV_RECORDS, size, seed=12))))
    return storage


def _named(variant: str, tasks: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """With ids of their own, so that tasks of several labs can be mixed."""
    return ({**task, "id": f"{variant}-{task['id']}"} for task in tasks)


def set_corpus(lab: LabSet, seed: int = 21) -> list[Passage]:
    """The passages about everybody who is held out."""
    rng = random.Random(seed)
    return [item for person in lab.held_out for item in lab.passages(person, rng)]


def set_questions(lab: LabSet, count: int, seed: int = 77) -> list[SetQuestion]:
    """Questions about those who are held out, cycling through them and through the attributes."""
    rng, people = random.Random(seed), lab.held_out
    return [lab.ask(people[(i * 7) % len(people)], ATTRIBUTES[i % len(ATTRIBUTES)], rng) for i in range(count)]


def set_tasks(
    lab: LabSet, people: Sequence[Person], records: int, people_per_record: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Task records: people who mostly share name pieces, all of their passages, and questions about each.

    A question rests on the passages of its own subject, in random order (no retriever knows which of them answers),
    and then on those of others until there are `lab.context`, those first who share a name piece.
    """
    rng, namesakes = random.Random(seed), Namesakes(people)
    for number in range(records):
        group = namesake_group(people, namesakes, people_per_record, rng)
        about = [lab.passages(person, rng) for person in group]
        questions = [
            {"question": item.question, "answer": item.answers[0], "context": context}
            for i, person in enumerate(group)
            for context in [_context(group, about, i, lab.context, rng)]
            for attribute in rng.sample(ATTRIBUTES, QUESTIONS_PER_PERSON)
            for item in [lab.ask(person, attribute, rng)]
        ]
        yield {
            "id": f"{seed}-{number}",
            "passages": [asdict(item) for items in about for item in items],
            "questions": questions,
        }


def _context(
    group: Sequence[Person], about: Sequence[Sequence[Passage]], i: int, count: int, rng: random.Random
) -> list[int]:
    """Positions of passages in the record: the subject's own, then others', namesakes first."""
    starts = [sum(len(items) for items in about[:j]) for j in range(len(group))]
    positions = [list(range(start, start + len(items))) for start, items in zip(starts, about, strict=True)]
    own = rng.sample(positions[i], len(positions[i]))
    return [*own, *(rng.choice(positions[j]) for j in nearest(group, i, rng))][: max(count, len(own))]
