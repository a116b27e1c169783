"""The meta-training loop. It knows tasks, the objective and an optimiser engine; not Ray, and not who reports progress.

The engine is DeepSpeed's on every worker of a job (`regrad.meta.engine`); the loop is the same with one process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regrad.atoms.gradients import passage_gradients
from regrad.config import MetaTrainConfig, OptimizerConfig
from regrad.errors import TrainingError
from regrad.evaluation.metrics import exact_match
from regrad.language_model.decoding import GenerationRequest, generate
from regrad.language_model.loading import LanguageModel
from regrad.meta.objective import MetaGradient, meta_gradient
from regrad.meta.tasks import MetaTask, TaskOrder, collate
from regrad.meta_init import MetaInit


class MetaParameters(nn.Module):
    """What is learned: phi0 [P] and the step sizes relative to their start [n_tensors], both float32."""

    def __init__(self, lm: LanguageModel, initial_step_size: float, seed: int) -> None:
        super().__init__()
        self.initial_step_size = initial_step_size
        self.phi0 = nn.Parameter(lm.subspace.initial(seed).to(lm.device))
        self.relative_step_sizes = nn.Parameter(torch.ones(len(lm.subspace.shapes), device=lm.device))

    def step_sizes(self) -> Tensor:
        """alpha [n_tensors]."""
        return self.relative_step_sizes * self.initial_step_size

    def surrogate(self, gradient: MetaGradient) -> Tensor:
        """A scalar whose ordinary gradient is the meta-gradient: sum(p * stop_gradient(G_p))."""
        return (self.phi0 * gradient.phi0).sum() + (self.step_sizes() * gradient.step_sizes).sum()


class Engine(Protocol):
    """What the loop needs of DeepSpeed: average gradients over workers, clip, step the optimiser and its schedule."""

    def backward(self, loss: Tensor) -> Any: ...
    def step(self) -> Any: ...


@dataclass(frozen=True)
class StepReport:
    """One logged step on one worker."""

    step: int
    steps: int
    loss: float
    inner_loss: float
    seconds: float
    passages_per_second: float


def learning_rate_factor(config: OptimizerConfig, step: int) -> float:
    """Linear warm-up, then linear to zero at `config.steps`."""
    warmup = max(1, math.ceil(config.warmup_fraction * config.steps))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (config.steps - step) / max(1, config.steps - warmup))


def parameter_groups(parameters: MetaParameters, config: OptimizerConfig) -> list[dict[str, Any]]:
    """AdamW groups: phi0 at `lr`, the relative step sizes at `step_size_lr`."""
    return [
        {"params": [parameters.phi0], "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": [parameters.relative_step_sizes], "lr": config.step_size_lr or config.lr, "weight_decay": 0.0},
    ]


def check_shares(config: MetaTrainConfig, workers: int) -> None:
    """Raise `TrainingError` unless the global batch is the same number of tasks for each worker."""
    if config.optimizer.batch_size % workers:
        raise TrainingError(f"batch_size {config.optimizer.batch_size} cannot be shared by {workers} workers equally")


def train(
    lm: LanguageModel,
    parameters: MetaParameters,
    engine: Engine,
    tasks: Sequence[MetaTask],
    config: MetaTrainConfig,
    rank: int = 0,
    world_size: int = 1,
    report: Callable[[StepReport], None] = lambda _: None,
) -> None:
    """Run all steps, this worker's share of every global batch; raises `TrainingError` if the loss diverges."""
    settings = config.optimizer
    check_shares(config, world_size)
    order = TaskOrder(len(tasks), settings.batch_size, config.seed)
    started, passages = time.monotonic(), 0
    for step in range(settings.steps):
        batch = collate(lm, [tasks[i] for i in order.step(step, rank, world_size)])
        gradient = meta_gradient(lm, parameters.phi0, parameters.step_sizes(), batch, config.inner_reduction)
        if not torch.isfinite(gradient.loss):
            raise TrainingError(
                f"the loss is not finite at step {step + 1}; lower initial_step_size or the learning rate"
            )
        engine.backward(parameters.surrogate(gradient))
        engine.step()
        passages += batch.passages.ids.shape[0] * world_size
        if (step + 1) % config.log_every == 0 or step + 1 == settings.steps:
            seconds = time.monotonic() - started
            loss, inner = float(gradient.loss), float(gradient.inner_loss)
            report(StepReport(step + 1, settings.steps, loss, inner, seconds, passages / seconds))


def to_meta_init(
    lm: LanguageModel, parameters: MetaParameters, config: MetaTrainConfig, notes: dict[str, Any]
) -> MetaInit:
    """The parameters as they are now, as a MetaInit."""
    return MetaInit(
        lm.config,
        lm.identity(),
        lm.subspace,
        parameters.phi0.detach().float().cpu().clone(),
        parameters.step_sizes().detach().float().cpu(),
        config.inner_reduction,
        notes,
    )


def score(lm: LanguageModel, meta_init: MetaInit, tasks: Sequence[MetaTask], batch_tasks: int = 8) -> float:
    """Exact match of greedy answers, each question under its own passages' update, nothing in the prompt."""
    hits = total = 0
    for start in range(0, len(tasks), batch_tasks):
        requests, answers = _requests(lm, meta_init, tasks[start : start + batch_tasks])
        predictions = generate(lm, requests)
        hits += sum(exact_match(p.text, [a]) for p, a in zip(predictions, answers, strict=True))
        total += len(answers)
    return hits / total


def _requests(
    lm: LanguageModel, meta_init: MetaInit, tasks: Sequence[MetaTask]
) -> tuple[list[GenerationRequest], list[str]]:
    batch = collate(lm, tasks)
    phi0 = meta_init.phi0.to(lm.device)
    gradients_UP, _ = passage_gradients(lm, phi0, batch.passages, meta_init.inner_reduction)
    sums_DP = (batch.membership @ gradients_UP).cpu()
    updates = [meta_init.update(row) for row in sums_DP]
    grouped = _questions_by_update(tasks)
    requests = [
        GenerationRequest(lm.config.prompts.prompt(question), update)
        for update, questions in zip(updates, grouped, strict=True)
        for question, _ in questions
    ]
    return requests, [answer for questions in grouped for _, answer in questions]


def _questions_by_update(tasks: Sequence[MetaTask]) -> list[list[tuple[str, str]]]:
    """The questions in the order in which `collate` groups them."""
    grouped: dict[frozenset[object], list[tuple[str, str]]] = {}
    for task in tasks:
        for question in task.questions:
            members = frozenset(task.passages[i] for i in question.context)
            grouped.setdefault(members, []).append((question.question, question.answer))
    return list(grouped.values())
