"""Which tasks a run trains on, and in which order: the way of a task from its file to a step.

Scan (each file by itself), plan (what is good, which draw is which task), place (each task by itself, as its draw sees
it), share. A job distributes the first and the third; `TasksInMemory` does all of it in one process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion, duplicates, task_files
from regrad.errors import CorpusError
from regrad.training.meta.config import MetaTrainConfig, ShapeConfig
from regrad.training.meta.lengths import Lengths, scan_file
from regrad.training.sampler import Sampler, Source
from regrad.training.schedules import steps_of_epochs
from regrad.training.workers import Workers

logger = logging.getLogger(__name__)

_POOL = 2048
_SHOWN = 5


class Key(NamedTuple):
    """A record: the number of its file among all files of the run, and its number in the file."""

    file: int
    number: int


class TaskHead(NamedTuple):
    """What a plan needs of a record: its place in words, the task's id, a hash of its content, or what is wrong."""

    key: Key
    place: str
    id: str
    content: str
    problem: str


def files_of(config: MetaTrainConfig) -> list[tuple[int, str]]:
    """The files of all sources in order, each with the number of its source; raises `CorpusError` if one is dev's."""
    files = [(number, file) for number, source in enumerate(config.tasks) for file in task_files(source.uri)]
    both = {file for _, file in files} & set(task_files(config.dev) if config.dev else ())
    if both:
        file = min(both)
        text = f"{file} is among the tasks and is dev, too: name the files of `tasks`, or keep dev in another directory"
        raise CorpusError(text, code="dev_among_tasks", file=file)
    return files


def scan(file: int, uri: str, lengths: Lengths, shape: ShapeConfig) -> Iterator[tuple[TaskHead, Task | None]]:
    """Head and task of every record of a file; none of a bad one.

    A file that cannot be read is a bad record whose place is the file: an error would lose its words on a job's way.
    """
    number = 0
    try:
        for number, item in enumerate(scan_file(uri, lengths, shape)):
            identifier, content = (item.task.id, _content(item.task)) if item.task else ("", "")
            yield TaskHead(Key(file, number), item.where, identifier, content, item.problem), item.task
    except CorpusError as error:
        yield TaskHead(Key(file, number + 1), uri, "", "", str(error)), None


def _content(task: Task) -> str:
    return _hash(json.dumps(task.to_record()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TaskPlan:
    """The tasks of each source, and with the settings (whose number of steps is known now) the order of all draws."""

    config: MetaTrainConfig
    sources: Sequence[Sequence[Key]]
    digest: str

    @property
    def summary(self) -> list[dict[str, Any]]:
        """What is recorded about the data."""
        return [
            {"uri": source.uri, "weight": source.weight, "tasks": len(keys)}
            for source, keys in zip(self.config.tasks, self.sources, strict=True)
        ]

    def steps(self, first: int = 0, workers: Workers = Workers()) -> Iterator[list[tuple[int, Key]]]:
        """This worker's draws of every step from `first` on: the position among all draws, and the task."""
        seed, optimizer = self.config.seed, self.config.optimizer
        sources = [
            Source(len(keys), f"{seed}/{number}", source.weight)
            for number, (keys, source) in enumerate(zip(self.sources, self.config.tasks, strict=True))
        ]
        for draws in Sampler(sources, optimizer.batch_size).steps(first, optimizer.steps, workers):
            yield [(draw.position, self.sources[draw.source][draw.number]) for draw in draws]

    def pool_keys(self) -> list[Key]:
        """The tasks whose first passages are drawn from as distractors, in order: up to 2048, chosen by the seed."""
        if not self.config.shape.distractor_probability:
            return []
        keys = sorted(key for keys in self.sources for key in keys)
        return sorted(random.Random(f"{self.config.seed}/pool").sample(keys, min(_POOL, len(keys))))

    def place(self, task: Task, position: int, pool: Sequence[Passage]) -> Task:
        """The task as the draw at `position` sees it."""
        return shape_task(task, self.config.shape, pool, self.config.seed, position)


def pool_of(tasks: Sequence[Task]) -> list[Passage]:
    """The distractors: the distinct first passages of the tasks of `pool_keys`."""
    return list(dict.fromkeys(task.passages[0] for task in tasks))


def make_plan(config: MetaTrainConfig, files: Sequence[tuple[int, str]], heads: Sequence[TaskHead]) -> TaskPlan:
    """Bad tasks are counted and logged, or fatal; raises `CorpusError` for those, a bad file, and an empty source."""
    heads = sorted(heads)
    problems = {head.place: head.problem for head in heads if head.problem}
    for _, uri in files:
        if uri in problems:
            raise CorpusError(problems[uri])
    problems |= duplicates([(head.place, head.id) for head in heads if not head.problem])
    if problems and config.shape.bad_tasks == "fail":
        more = f" (and {len(problems) - 1} more; shape.bad_tasks=skip leaves them out)" if len(problems) > 1 else ""
        raise CorpusError(next(iter(problems.values())) + more)
    for problem in list(problems.values())[:_SHOWN]:
        logger.warning("skipped: %s", problem)
    if problems:
        logger.warning("%d of %d tasks are skipped", len(problems), len(heads))
    good = [head for head in heads if head.place not in problems]
    sources: list[list[Key]] = [[] for _ in config.tasks]
    for head in good:
        sources[files[head.key.file][0]].append(head.key)
    for source, keys in zip(config.tasks, sources, strict=True):
        if not keys:
            raise CorpusError(f"{source.uri} holds no tasks")
    return TaskPlan(_with_steps(config, len(good)), sources, _hash(json.dumps([head.content for head in good])))


def _with_steps(config: MetaTrainConfig, tasks: int) -> MetaTrainConfig:
    optimizer = config.optimizer
    if optimizer.epochs is None:
        return config
    steps = steps_of_epochs(optimizer.epochs, tasks, optimizer.batch_size)
    logger.info("%g epochs of %d tasks: %d steps", optimizer.epochs, tasks, steps)
    return config.model_copy(update={"optimizer": optimizer.model_copy(update={"steps": steps})})


class TasksInMemory:
    """All tasks of a run in this process. Raises `CorpusError` as `make_plan` does."""

    def __init__(self, plan: TaskPlan, tasks: Mapping[Key, Task]) -> None:
        self.plan, self._tasks = plan, tasks
        self._pool = pool_of([tasks[key] for key in plan.pool_keys()])

    @staticmethod
    def read(config: MetaTrainConfig) -> TasksInMemory:
        """From the files that the settings name."""
        files, lengths = files_of(config), Lengths.of(config.model)
        scanned = [item for number, (_, uri) in enumerate(files) for item in scan(number, uri, lengths, config.shape)]
        plan = make_plan(config, files, [head for head, _ in scanned])
        return TasksInMemory(plan, {head.key: task for head, task in scanned if task is not None})

    @staticmethod
    def of(config: MetaTrainConfig, sources: Sequence[Sequence[Task]]) -> TasksInMemory:
        """Tasks that are made and not read: those of each source."""
        tasks = {Key(n, i): task for n, source in enumerate(sources) for i, task in enumerate(source)}
        heads = [
            TaskHead(key, f"task {key.number} of source {key.file}", t.id, _content(t), "") for key, t in tasks.items()
        ]
        files = [(number, f"source {number}") for number in range(len(sources))]
        return TasksInMemory(make_plan(config, files, heads), tasks)

    def steps(self, first: int = 0, workers: Workers = Workers()) -> Iterator[list[Task]]:
        """This worker's tasks of every step from `first` on, as their draws see them."""
        for draws in self.plan.steps(first, workers):
            yield [self.plan.place(self._tasks[key], position, self._pool) for position, key in draws]


def shape_task(task: Task, shape: ShapeConfig, pool: Sequence[Passage], seed: int, position: int) -> Task:
    """The task as the draw at `position` sees it: fewer passages or questions, distractors from `pool`, another order.

    A function of the task, the settings, the seed and the position, so it does not matter where it is called.
    """
    rng = random.Random(f"{seed}/shape/{position}")
    questions = [replace(q, context=q.context[: shape.k]) for q in task.questions]
    if shape.questions is not None and shape.questions < len(questions):
        questions = rng.sample(questions, shape.questions)
    task = replace(task, questions=tuple(questions))
    if rng.random() < shape.distractor_probability:
        task = _with_distractors(task, _sample(task, pool, shape.distractors, rng))
    if shape.order == "shuffled":
        task = replace(task, questions=tuple(_shuffled(q, rng) for q in task.questions))
    return _without_unused(task)


def _sample(task: Task, pool: Sequence[Passage], count: int, rng: random.Random) -> list[Passage]:
    own = {passage.id for passage in task.passages}
    tried = rng.sample(pool, min(len(pool), count + len(own))) if pool else []
    return [passage for passage in tried if passage.id not in own][:count]


def _with_distractors(task: Task, distractors: Sequence[Passage]) -> Task:
    """Behind every question's own passages, as a retriever's worse hits would be."""
    added = tuple(range(len(task.passages), len(task.passages) + len(distractors)))
    questions = tuple(replace(q, context=q.context + added) for q in task.questions)
    return replace(task, passages=task.passages + tuple(distractors), questions=questions)


def _shuffled(question: TaskQuestion, rng: random.Random) -> TaskQuestion:
    return replace(question, context=tuple(rng.sample(question.context, len(question.context))))


def _without_unused(task: Task) -> Task:
    """Passages that no question rests on need no gradient."""
    used = sorted({position for question in task.questions for position in question.context})
    number = {old: new for new, old in enumerate(used)}
    questions = tuple(replace(q, context=tuple(number[i] for i in q.context)) for q in task.questions)
    return replace(task, passages=tuple(task.passages[i] for i in used), questions=questions)
