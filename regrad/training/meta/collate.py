"""A batch of tasks as tensors: distinct passages, distinct updates, and questions, each under one of the updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regrad.data.passages import Passage
from regrad.data.tasks import Task, TaskQuestion
from regrad.gradients.extractor import encode_passage, passage_batch
from regrad.models.batching import TokenBatch
from regrad.models.loading import LanguageModel
from regrad.models.packing import group_batch
from regrad.training.meta.config import ShapeConfig


@dataclass(frozen=True)
class MetaBatch:
    """U distinct passages, D updates and N = D * n questions, ready for the model.

    `membership` [D, U] is 1 where a passage belongs to an update. Questions are grouped by update, n for each, in a row
    of their own or all n of an update in one, and `weights` [N] say how much each counts: every task alike.
    """

    passages: TokenBatch
    membership: Tensor
    questions: TokenBatch
    weights: Tensor

    @property
    def questions_per_update(self) -> int:
        """n."""
        return self.weights.shape[0] // self.membership.shape[0]

    @property
    def rows_per_update(self) -> int:
        """n, or 1 if the questions of an update are in one row."""
        return self.questions.ids.shape[0] // self.membership.shape[0]

    @property
    def tokens(self) -> int:
        """Tokens of passages and questions, without padding."""
        return self.passages.tokens + self.questions.tokens

    def with_tokens(self, passages: TokenBatch, questions: TokenBatch) -> MetaBatch:
        """The same batch with other token batches."""
        return replace(self, passages=passages, questions=questions)

    def of_updates(self, first: int, last: int) -> MetaBatch:
        """The questions of the updates `first` to `last - 1` as a batch."""
        n, rows = self.questions_per_update, self.rows_per_update
        return replace(
            self,
            membership=self.membership[first:last],
            questions=self.questions.take(torch.arange(first * rows, last * rows, device=self.weights.device)),
            weights=self.weights[first * n : last * n],
        )


TaskAndQuestion = tuple[Task, TaskQuestion]


def group_questions(tasks: Sequence[Task]) -> list[tuple[frozenset[Passage], list[TaskAndQuestion]]]:
    """The updates of a batch, each with its passages and the same number of questions.

    Questions on the same passages share an update, as far as groups of equal size allow (the greatest common divisor).
    """
    together: dict[frozenset[Passage], list[TaskAndQuestion]] = {}
    for task in tasks:
        for question in task.questions:
            members = frozenset(task.passages[position] for position in question.context)
            together.setdefault(members, []).append((task, question))
    # With groups of equal size the model broadcasts each update over its questions instead of copying it for each.
    n = math.gcd(*(len(asked) for asked in together.values()))
    return [
        (members, asked[start : start + n]) for members, asked in together.items() for start in range(0, len(asked), n)
    ]


def collate(lm: LanguageModel, tasks: Sequence[Task], shape: ShapeConfig = ShapeConfig()) -> MetaBatch:
    """Tokenise and pad a batch of tasks; a passage that several questions rest on appears once.

    So does what the prompts of an update's questions begin with, where that saves enough (see `packing`).
    """
    groups = group_questions(tasks)
    passages = list(dict.fromkeys(passage for task in tasks for passage in task.passages))
    number = {passage: i for i, passage in enumerate(passages)}
    encoded = [[encode_question(lm, task, question, shape) for task, question in asked] for _, asked in groups]
    weights = [1.0 / (len(tasks) * len(task.questions)) for _, asked in groups for task, _ in asked]
    membership_DU = torch.zeros(len(groups), len(passages))
    for row, (members, _) in enumerate(groups):
        membership_DU[row, sorted(number[passage] for passage in members)] = 1.0
    return MetaBatch(
        passage_batch(lm, [encode_passage(lm, passage) for passage in passages]),
        membership_DU.to(lm.device),
        group_batch(lm, encoded),
        torch.tensor(weights, dtype=torch.float64, device=lm.device),
    )


def encode_question(lm: LanguageModel, task: Task, question: TaskQuestion, shape: ShapeConfig) -> tuple[list[int], int]:
    """Token ids of prompt and answer, and the number of those of the prompt.

    With passages in the prompt, those of the lowest rank are left out until it fits `shape.max_tokens` and the model.
    """
    limit = lm.within(shape.max_tokens)
    answer = [*lm.encode(lm.config.prompts.reply(question.answer)), *lm.ending]
    prompts = lm.config.prompts
    context = prompt_passages(task, question, shape)
    while True:
        prompt = lm.encode_prompt(prompts.prompt_for(question.asked, prompts.ordered(context)))
        if not context or len(prompt) + len(answer) <= limit:
            return [*prompt, *answer], len(prompt)
        context = context[:-1]


def prompt_passages(task: Task, question: TaskQuestion, shape: ShapeConfig) -> list[Passage]:
    """The passages that a question has in its prompt, best first; none unless `shape.in_prompt` and the task's."""
    return [task.passages[position] for position in question.context] if shape.in_prompt and task.in_prompt else []
