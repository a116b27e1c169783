"""Meta-training tasks: a few passages, and questions that each name the passages they are answered from.

One task a line of jsonl: `{"passages": [{id, title, text}], "questions": [{question, answer, context: [0, 2]}]}`;
`context` are positions in `passages` (all of them if absent). Shared passages are differentiated once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regrad.atoms.gradients import encode_passage, passage_batch
from regrad.corpus import Passage, read_records
from regrad.errors import CorpusError
from regrad.language_model.batching import TokenBatch, pad_batch
from regrad.language_model.loading import LanguageModel


@dataclass(frozen=True)
class TaskQuestion:
    """A question, its answer, and the positions of its retrieved passages in the task."""

    question: str
    answer: str
    context: tuple[int, ...]


@dataclass(frozen=True)
class MetaTask:
    """Passages and the questions about them."""

    passages: tuple[Passage, ...]
    questions: tuple[TaskQuestion, ...]

    @staticmethod
    def from_record(record: Any, where: str = "record") -> MetaTask:
        """Check one decoded record; raises `CorpusError` naming `where`."""
        parts = [record.get(k) if isinstance(record, dict) else None for k in ("passages", "questions")]
        if not all(isinstance(part, list) and part for part in parts):
            raise CorpusError(f"{where}: a task needs non-empty 'passages' and 'questions'")
        passages = tuple(Passage.from_record(item, f"{where} passage {i}") for i, item in enumerate(record["passages"]))
        questions = tuple(
            _question(item, len(passages), f"{where} question {i}") for i, item in enumerate(record["questions"])
        )
        return MetaTask(passages, questions)


@dataclass(frozen=True)
class MetaBatch:
    """U distinct passages, D distinct updates and N questions, ready for the model.

    `membership` [D, U] is 1 where a passage belongs to an update; question rows are grouped by update, and
    `question_update` [N] says which one each runs with.
    """

    passages: TokenBatch
    membership: Tensor
    questions: TokenBatch
    question_update: Tensor

    @property
    def questions_per_update(self) -> int | None:
        """n if every update has exactly n questions (then no update needs copying), else None."""
        counts = torch.bincount(self.question_update, minlength=self.membership.shape[0])
        return int(counts[0]) if bool((counts == counts[0]).all()) else None


def read_tasks(uri: str) -> list[MetaTask]:
    """All tasks of a jsonl file; raises `CorpusError` naming the line, or if there is none."""
    tasks = [MetaTask.from_record(record, f"{uri} line {number}") for number, record in read_records(uri)]
    if not tasks:
        raise CorpusError(f"{uri} holds no tasks")
    return tasks


class TaskOrder:
    """Which tasks a step sees: a fresh permutation each epoch, fixed by the seed whatever the number of workers."""

    def __init__(self, tasks: int, batch_size: int, seed: int) -> None:
        self._tasks, self._batch_size, self._seed = tasks, batch_size, seed

    def step(self, step: int, rank: int = 0, world_size: int = 1) -> list[int]:
        """Task numbers of this worker's share of the global batch of `step`."""
        positions = range(step * self._batch_size, (step + 1) * self._batch_size)
        batch = [self._permutation(p // self._tasks)[p % self._tasks] for p in positions]
        return batch[rank::world_size]

    def _permutation(self, epoch: int) -> list[int]:
        cached = getattr(self, "_cached", None)
        if cached is None or cached[0] != epoch:
            order = list(range(self._tasks))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            cached = self._cached = (epoch, order)
        return cached[1]


def collate(lm: LanguageModel, tasks: Sequence[MetaTask]) -> MetaBatch:
    """Tokenise and pad a batch of tasks."""
    passages = list(dict.fromkeys(passage for task in tasks for passage in task.passages))
    number = {passage: i for i, passage in enumerate(passages)}
    grouped: dict[frozenset[int], list[TaskQuestion]] = {}
    for task in tasks:
        for question in task.questions:
            members = frozenset(number[task.passages[i]] for i in question.context)
            grouped.setdefault(members, []).append(question)
    membership = torch.zeros(len(grouped), len(passages))
    for row, members in enumerate(grouped):
        membership[row, sorted(members)] = 1.0
    owners = [row for row, questions in enumerate(grouped.values()) for _ in questions]
    encoded = [_encode_question(lm, question) for questions in grouped.values() for question in questions]
    return MetaBatch(
        passage_batch(lm, [encode_passage(lm, passage) for passage in passages]),
        membership.to(lm.device),
        pad_batch([ids for ids, _ in encoded], [start for _, start in encoded], lm.pad_id, lm.device),
        torch.tensor(owners, device=lm.device),
    )


def _encode_question(lm: LanguageModel, question: TaskQuestion) -> tuple[list[int], int]:
    prompts = lm.config.prompts
    prompt = lm.bos + lm.encode(prompts.prompt(question.question))
    return [*prompt, *lm.encode(prompts.answer_text(question.answer)), *lm.eos], len(prompt)


def _question(item: Any, passages: int, where: str) -> TaskQuestion:
    if not isinstance(item, dict) or not all(isinstance(item.get(k), str) and item[k] for k in ("question", "answer")):
        raise CorpusError(f"{where}: 'question' and 'answer' must be non-empty strings")
    context = item.get("context", list(range(passages)))
    valid = isinstance(context, list) and context and all(type(i) is int and 0 <= i < passages for i in context)
    if not valid:
        raise CorpusError(f"{where}: 'context' must be positions from 0 to {passages - 1}, found {context!r:.60}")
    return TaskQuestion(item["question"], item["answer"], tuple(context))
