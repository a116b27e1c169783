"""What is made of a task before it is trained on: fewer passages or questions, distractors, another order.

A pure function of the task, the settings, the seed and the position of the draw.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion
from regrad.training.meta.config import ShapeConfig


def shape_task(task: Task, shape: ShapeConfig, pool: Sequence[Passage], seed: int, position: int) -> Task:
    """The task as the draw at `position` sees it; distractors come from `pool`."""
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
