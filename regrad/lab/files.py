"""The files of a lab, and of a harder one: passages, questions, training tasks and augmented passages."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from regrad.data.augmented import AUGMENTED, Augmented, Pair, encode_augmented
from regrad.data.jsonl import encode_jsonl
from regrad.data.passages import Passage, encode_passages
from regrad.lab.config import LabConfig
from regrad.lab.sets import SETS, LabQuestion, LabSet
from regrad.lab.wording import ATTRIBUTES
from regrad.lab.world import Namesakes, Person, World, passage, question
from regrad.storage import Storage

CORPUS, QUESTIONS, TASKS, DEV = "corpus.jsonl", "questions.jsonl", "tasks.jsonl", "dev.jsonl"
DOCUMENTS, DOCUMENT_QUESTIONS = "documents.jsonl", "document-questions.jsonl"
DEMONSTRATIONS = "demonstrations.jsonl"
DEV_PEOPLE = 100
DEV_RECORDS = 12
QUESTIONS_PER_PERSON = 5
_NAMESAKE_FRACTION = 0.9


def write_lab(config: LabConfig) -> Storage:
    """Write `corpus.jsonl` (held-out people), `questions.jsonl`, `tasks.jsonl` and `dev.jsonl` (meta people).

    With `config.demonstrations` also `demonstrations.jsonl`: the first question of that number of dev tasks, solved.
    With `config.documents` also `documents.jsonl`: the documents of that number of meta people, without questions. With
    `config.augmented` also `augmented.jsonl`: the corpus with other wordings and that number of questions a passage.
    """
    world = World(config.seed)
    people, storage = world.held_out[: config.people], Storage(config.output)
    storage.write(CORPUS, encode_passages(corpus := held_out_corpus(world)[: config.people]))
    storage.write(QUESTIONS, encode_jsonl(item.to_record() for item in people_questions(people, config.questions)))
    training, dev = world.meta[:-DEV_PEOPLE], world.meta[-DEV_PEOPLE:]
    storage.write(TASKS, encode_jsonl(lab_tasks(training, config, config.task_records, seed=11)))
    dev_tasks = list(lab_tasks(dev, config, DEV_RECORDS, seed=12))
    storage.write(DEV, encode_jsonl(dev_tasks))
    if config.demonstrations:
        storage.write(
            DEMONSTRATIONS, encode_jsonl(solved_question(task) for task in dev_tasks[: config.demonstrations])
        )
    if config.documents:
        storage.write(DOCUMENTS, encode_passages(documents(training[: config.documents])))
    if config.augmented:
        items = augmented_passages(people, corpus, config.augmented)
        storage.write(AUGMENTED, encode_augmented(items))
    return storage


def solved_question(task: Mapping[str, Any]) -> dict[str, Any]:
    """The first question of a task record as a line of a question file, with the passages that it rests on."""
    asked = task["questions"][0]
    passages = [task["passages"][position] for position in asked["context"]]
    return {"id": task["id"], "question": asked["question"], "answers": [asked["answer"]], "passages": passages}


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
    """Questions about any people, cycling through people and attributes."""
    rng = random.Random(seed)
    questions = []
    for i in range(count):
        person, attribute = people[(i * 7) % len(people)], ATTRIBUTES[i % len(ATTRIBUTES)]
        other = rng.choice([p for p in people if p.values[attribute] != person.values[attribute]])
        text = question(person, attribute, rng)
        questions.append(LabQuestion(text, (person.values[attribute],), (person.passage_id,), (other.passage_id,)))
    return questions


def lab_tasks(people: Sequence[Person], config: LabConfig, records: int, seed: int) -> Iterable[dict[str, Any]]:
    """Task records: people who mostly share name pieces; a question rests on its person's passage and others'.

    The others (two by default) share a name piece with the person, if there are such: what BM25 would also retrieve.
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
    """People of whom each mostly shares a name piece with an earlier one."""
    group: list[Person] = []
    while len(group) < size:
        near = bool(group) and rng.random() < _NAMESAKE_FRACTION
        person = namesakes.sample(rng.choice(group), rng) if near else rng.choice(people)
        if person not in group:
            group.append(person)
    return group


def nearest(group: Sequence[Person], i: int, rng: random.Random) -> list[int]:
    """The positions of all others, first of those who share a name piece with person i."""
    others = [j for j in range(len(group)) if j != i]
    rng.shuffle(others)
    pieces = set(group[i].name.split())
    return sorted(others, key=lambda j: not pieces & set(group[j].name.split()))


def augmented_passages(
    people: Iterable[Person], passages: Iterable[Passage], pairs: int, seed: int = 31
) -> Iterator[Augmented]:
    """Each person's passage with another wording and this number of questions, about different attributes first."""
    for person, text in zip(people, passages, strict=True):
        rng = random.Random(f"{seed}/{person.name}")
        order = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
        asked = [order[number % len(order)] for number in range(pairs)]
        questions = tuple(Pair(question(person, name, rng), person.values[name]) for name in asked)
        yield Augmented(text, (passage(person, rng).text,), questions)


def write_hard_lab(config: LabConfig) -> Storage:
    """Write the four files of the harder lab that `config.variant` names: those of `write_lab`.

    `questions.jsonl` has lists where the lab has one passage (`passage_ids`, `other_passage_ids`), and a `group`. With
    `config.documents` also `documents.jsonl`, the passages of that number of meta subjects, and
    `document-questions.jsonl`, a question for each of their attributes: what a retriever is trained on.
    """
    lab = SETS[config.variant](World(config.seed))
    storage = Storage(config.output)
    storage.write(CORPUS, encode_passages(set_corpus(lab, config.people)))
    questions = set_questions(lab, config.questions, config.people)
    storage.write(QUESTIONS, encode_jsonl(asdict(item) for item in questions))
    size = config.people_per_record
    training = set_tasks(lab, lab.meta[:-DEV_PEOPLE], config.task_records, size, seed=11)
    dev = set_tasks(lab, lab.meta[-DEV_PEOPLE:], DEV_RECORDS, size, seed=12)
    for name, tasks in ((TASKS, training), (DEV, dev)):
        # The variant in the ids keeps them unique where tasks of several labs are mixed.
        storage.write(name, encode_jsonl({**task, "id": f"{config.variant}-{task['id']}"} for task in tasks))
    if config.documents:
        people = lab.meta[:-DEV_PEOPLE][: config.documents]
        storage.write(DOCUMENTS, encode_passages(passages_about(lab, people, seed=22)))
        storage.write(DOCUMENT_QUESTIONS, encode_jsonl(asdict(item) for item in questions_about(lab, people, seed=23)))
    return storage


def set_corpus(lab: LabSet, people: int | None = None) -> list[Passage]:
    """The passages about that many held-out subjects, or about all."""
    return passages_about(lab, lab.held_out[:people], seed=21)


def passages_about(lab: LabSet, people: Sequence[Person], seed: int) -> list[Passage]:
    """All passages about these subjects."""
    rng = random.Random(seed)
    return [item for person in people for item in lab.passages(person, rng)]


def questions_about(lab: LabSet, people: Sequence[Person], seed: int) -> list[LabQuestion]:
    """One question about each attribute of each of these subjects."""
    rng = random.Random(seed)
    return [lab.ask(person, attribute, rng) for person in people for attribute in ATTRIBUTES]


def set_questions(lab: LabSet, count: int, people: int | None = None) -> list[LabQuestion]:
    """Questions about that many held-out subjects, or about all, cycling through them and through the attributes."""
    rng, subjects = random.Random(77), lab.held_out[:people]
    return [lab.ask(subjects[(i * 7) % len(subjects)], ATTRIBUTES[i % len(ATTRIBUTES)], rng) for i in range(count)]


def set_tasks(
    lab: LabSet, people: Sequence[Person], records: int, people_per_record: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Task records: people who mostly share name pieces, all of their passages, and questions about each.

    A question rests on the passages of its own subject, in random order (no retriever knows which of them answers),
    and then on those of others, up to `lab.context` in all, first of those who share a name piece.
    """
    rng, namesakes = random.Random(seed), Namesakes(people)
    for number in range(records):
        group = namesake_group(people, namesakes, people_per_record, rng)
        about = [lab.passages(person, rng) for person in group]
        starts = [sum(len(items) for items in about[:j]) for j in range(len(group))]
        positions = [range(start, start + len(items)) for start, items in zip(starts, about, strict=True)]
        questions = []
        for i, person in enumerate(group):
            own = rng.sample(positions[i], len(positions[i]))
            others = [rng.choice(positions[j]) for j in nearest(group, i, rng)]
            context = [*own, *others][: max(lab.context, len(own))]
            for attribute in rng.sample(ATTRIBUTES, QUESTIONS_PER_PERSON):
                item = lab.ask(person, attribute, rng)
                questions.append({"question": item.question, "answer": item.answers[0], "context": context})
        passages = [asdict(item) for items in about for item in items]
        yield {"id": f"{seed}-{number}", "passages": passages, "questions": questions}
