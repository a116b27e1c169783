"""Does a run learn to read, or has it learned the task? The outer loss with the right passage, another and none.

A loss that falls shows neither: phi0 alone can learn how answers look. What only reading gives is the difference
between the update of a question's own passages and that of another task's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regrad.data.tasks import Task
from regrad.models.batching import sequence_losses
from regrad.models.config import ActsOn
from regrad.models.loading import LanguageModel
from regrad.training.checkpoint import DevScore
from regrad.training.meta.collate import MetaBatch, collate, group_questions
from regrad.training.meta.config import InnerConfig, ReadingConfig, ShapeConfig
from regrad.training.meta.objective import Point, adapt

RIGHT, OTHER, NONE = "loss_right", "loss_other", "loss_none"
_BATCH_TASKS = 8


@dataclass(frozen=True)
class ReadingSums:
    """Outer losses of the same questions under three updates, summed over tasks; they add up over batches and workers.

    `right` is under the update of a question's passages, `other` under that of passages of another task, and `none`
    under phi0 itself. Every task counts alike, by the share `tasks` of it that could be compared.
    """

    right: float = 0.0
    other: float = 0.0
    none: float = 0.0
    tasks: float = 0.0

    def __add__(self, more: ReadingSums) -> ReadingSums:
        return ReadingSums(
            self.right + more.right, self.other + more.other, self.none + more.none, self.tasks + more.tasks
        )


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of `count` numbers, evenly over all of them: neighbours in a file are often about one subject."""
    kept = min(count, most)
    return [number * count // kept for number in range(kept)]


@torch.no_grad()
def reading_sums(
    lm: LanguageModel,
    at: Point,
    tasks: Sequence[Task],
    inner: InnerConfig = InnerConfig(),
    shape: ShapeConfig = ShapeConfig(),
) -> ReadingSums:
    """The three losses of these tasks. A question is left out if no other task of its batch has passages of its own."""
    total = ReadingSums()
    batches = -(-len(tasks) // _BATCH_TASKS)
    for first in range(batches):
        # With a stride, every batch has tasks from everywhere, and no batch is left with a single one.
        part = tasks[first::batches]
        batch = collate(lm, part, shape)
        updates_DP, _ = adapt(lm, at, batch, inner.reduction, inner.steps)
        others_D = _others(part)
        kept = torch.tensor([number is not None for number in others_D], device=lm.device)
        kept_N = kept.repeat_interleave(batch.questions_per_update)
        weights_N = (batch.weights * len(part) * kept_N).float()
        swapped = [row if other is None else other for row, other in enumerate(others_D)]
        right, other, none = (
            float((_losses(lm, update, batch, inner.acts_on) * weights_N).sum())
            for update in (updates_DP, updates_DP[swapped], at.phi0)
        )
        total += ReadingSums(right, other, none, float(weights_N.sum()))
    return total


def _losses(lm: LanguageModel, updates: Tensor, batch: MetaBatch, acts_on: ActsOn) -> Tensor:
    with lm.lora.applied(updates, batch.questions.acted_on(acts_on)):
        return sequence_losses(lm, batch.questions).float()


def _others(tasks: Sequence[Task]) -> list[int | None]:
    """For each update of the batch the next one, in a circle, that shares no passage with the tasks it belongs to."""
    groups = group_questions(tasks)
    own = [frozenset(p for task, _ in asked for p in task.passages) for _, asked in groups]
    count = len(groups)
    return [
        next(
            (other for step in range(1, count) if not groups[other := (row + step) % count][0] & own[row]),
            None,
        )
        for row in range(count)
    ]


def means(sums: Sequence[ReadingSums]) -> dict[str, float]:
    """The three losses by name, means over the sets that could be compared; nothing if there is none."""
    sets = [one for one in sums if one.tasks > 0]
    if not sets:
        return {}
    return {
        RIGHT: sum(one.right / one.tasks for one in sets) / len(sets),
        OTHER: sum(one.other / one.tasks for one in sets) / len(sets),
        NONE: sum(one.none / one.tasks for one in sets) / len(sets),
    }


def reading_warning(scores: Sequence[DevScore], warmup_steps: int, config: ReadingConfig, step_size: float) -> str:
    """What to say after the latest score: a warning once, when it completes the first series without a gap.

    A series is `config.patience` scores in a row, after the warm-up, in which another passage's update costs less than
    `config.least_gap` nats more than the right one's.
    """
    run = 0
    for score in scores:
        if RIGHT not in score.values or score.step <= warmup_steps:
            continue
        run = run + 1 if score.values[OTHER] - score.values[RIGHT] < config.least_gap else 0
        if run == config.patience:
            if score is not scores[-1]:
                return ""  # it was said then
            return (
                f"WARNING: the model is not using the passages: at {run} dev scores in a row the outer loss with "
                f"another task's passages is within {config.least_gap:g} of that with the right ones (now "
                f"{score.values[OTHER]:.3f} and {score.values[RIGHT]:.3f}; without any {score.values[NONE]:.3f}). What "
                "it learns is the task, not the passages. Try a larger inner.initial_step_size (from "
                f"{step_size:g}, increase it tenfold at a time until the first loss rises), a larger "
                "optimizer.step_size_lr, or tasks that cannot be answered without their passages; see "
                "docs/training.md, 'Does it read?'"
            )
    return ""
