"""The meta-training loop. It knows tasks, a strategy and an optimiser engine; not Ray, and not who listens.

The same loop runs in one process (a notebook, a test) and on every worker of a job.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import reduce
from operator import add
from typing import Any

import torch

from regrad.data.tasks import Task
from regrad.errors import TrainingError
from regrad.meta_init import MetaInit
from regrad.models.loading import LanguageModel
from regrad.training.meta.callbacks import Listener, Meter, Silent, StepReport, peak_memory
from regrad.training.meta.checkpoint import DevScore, TrainState
from regrad.training.meta.collate import collate
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.meta.dev_scores import Sums, score
from regrad.training.meta.objective import MetaGradient
from regrad.training.meta.optim.base import Engine
from regrad.training.meta.strategies.auto import LEANER, choose
from regrad.training.meta.strategies.base import Strategy
from regrad.training.meta.task_augment import shape_task
from regrad.training.sampler import share_of
from regrad.training.schedules import learning_rate_factor


def check_shares(config: MetaTrainConfig, workers: int) -> None:
    """Raise `TrainingError` unless the global batch is the same number of tasks for each worker."""
    if config.optimizer.batch_size % workers:
        raise TrainingError(f"batch_size {config.optimizer.batch_size} cannot be shared by {workers} workers equally")


class Trainer:
    """One worker's side of a run."""

    def __init__(
        self,
        lm: LanguageModel,
        engine: Engine,
        config: MetaTrainConfig,
        identity: str,
        notes: dict[str, Any] | None = None,
        rank: int = 0,
        world_size: int = 1,
        listener: Listener | None = None,
        workers_here: int = 1,
    ) -> None:
        check_shares(config, world_size)
        self._lm, self._engine, self._config = lm, engine, config
        self._identity, self._notes = identity, notes or {}
        self._rank, self._world_size, self._workers_here = rank, world_size, workers_here
        self._listener: Listener = listener or Silent()
        self._strategy: Strategy | None = None
        self._meter = Meter()

    def run(
        self, steps: Iterable[Sequence[Task]], dev: Sequence[Task] = (), state: TrainState | None = None
    ) -> TrainState:
        """Train until the last step; `steps` are this worker's tasks of each step that is still to be done.

        Raises `TrainingError` if too many steps in a row have a non-finite loss or gradient.
        """
        state = state or TrainState()
        for tasks in steps:
            self._step(tasks, state)
            last = state.step == self._config.optimizer.steps
            if last or state.step % self._config.watch.every == 0:
                self._listener.report(self._report(state))
            scoring = self._config.scoring.every
            scored = bool(dev) and (last or (scoring is not None and state.step % scoring == 0))
            if scored:
                self._score(dev, state)
            if last or scored or state.step % self._config.checkpoints.every == 0:
                self._listener.checkpoint(state, self._engine.state(), self.meta_init(state))
        if state.step != self._config.optimizer.steps:
            raise TrainingError(f"the tasks ended at step {state.step} of {self._config.optimizer.steps}")
        return state

    def meta_init(self, state: TrainState) -> MetaInit:
        """The parameters as they are now, as a MetaInit."""
        inner, point = self._config.inner, self._engine.point()
        notes = {**self._notes, "steps": state.step, "skipped_steps": len(state.skipped)}
        notes["dev"] = [vars(score) for score in state.dev]
        notes["losses"] = [round(loss, 6) for loss in state.losses[:: max(1, len(state.losses) // 500)]]
        return MetaInit(
            self._lm.config,
            self._identity,
            self._lm.subspace,
            point.phi0.detach().float().cpu().clone(),
            self._engine.step_sizes(),
            inner.reduction,
            notes,
            step_size_mode=inner.step_size_mode,
            inner_steps=inner.steps,
        )

    def _step(self, tasks: Sequence[Task], state: TrainState) -> None:
        if self._strategy is None:
            self._choose(tasks, state)
        gradient = self._gradient(tasks)
        finite = all(bool(torch.isfinite(t).all()) for t in (gradient.loss, gradient.phi0, gradient.alpha))
        values = [float(gradient.loss), float(gradient.inner_loss)] if finite else [0.0, 0.0]
        bad, loss, inner = self._engine.total([0.0 if finite else 1.0, *values])
        state.step += 1
        if bad:
            self._skip(state)
            return
        self._engine.apply(gradient, learning_rate_factor(self._config.optimizer, state.step - 1))
        state.losses.append(loss / self._world_size)
        self._meter.losses(inner / self._world_size, gradient.error)

    def _skip(self, state: TrainState) -> None:
        state.skipped.append(state.step)
        limit = self._config.optimizer.max_bad_steps
        if state.skipped_in_a_row >= limit:
            raise TrainingError(
                f"the loss or its gradient is not finite at step {state.step}, the {limit}. time in a row; "
                "lower inner.initial_step_size or optimizer.lr and start again with checkpoints.resume=false (the last "
                "checkpoint is intact: copy its meta_init first if you want to start from it)"
            )
        self._listener.note(f"step {state.step} is skipped: its loss or gradient is not finite")

    def _gradient(self, tasks: Sequence[Task]) -> MetaGradient:
        """The mean over this worker's tasks, a micro-batch at a time."""
        size = self._config.optimizer.micro_batch or len(tasks)
        parts = []
        for start in range(0, len(tasks), size):
            part = tasks[start : start + size]
            parts.append(self._part(part).scaled(len(part) / len(tasks)))
        return reduce(add, parts)

    def _part(self, tasks: Sequence[Task]) -> MetaGradient:
        batch, point = collate(self._lm, tasks, self._config.shape), self._engine.point()
        self._meter.count(batch.passages.ids.shape[0], batch.tokens)
        assert self._strategy is not None
        with self._autocast():
            return self._strategy(self._lm, point, batch)

    def _choose(self, tasks: Sequence[Task], state: TrainState) -> None:
        """The leanest of what the workers would choose, so that all do the same, and again after a resume."""
        config = self._config
        if state.strategy != "auto":
            said = f"strategy {state.strategy}, as before"
        else:
            batch = collate(self._lm, tasks[: config.optimizer.micro_batch], config.shape)
            with self._autocast():
                mine, said = choose(
                    self._lm, self._engine.point(), batch, config.strategy, config.inner,
                    self._workers_here, self._engine.layer_wise,
                )  # fmt: skip
            votes = self._engine.total([float(mine.name == name) for name in LEANER])
            state.strategy = [name for name, count in zip(LEANER, votes, strict=True) if count][-1]
        settled = config.strategy.model_copy(update={"name": state.strategy})
        self._strategy, _ = choose(
            self._lm, self._engine.point(), None, settled, config.inner, layer_wise=self._engine.layer_wise
        )
        self._listener.note(said)

    def _autocast(self) -> Any:
        if self._config.optimizer.precision == "bf16":
            return torch.autocast(self._lm.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _score(self, dev: Sequence[Task], state: TrainState) -> None:
        """Each worker scores a part; with sharded weights all score everything, since they have to run in step."""
        alone = self._engine.layer_wise
        mine = range(len(dev)) if alone else share_of(range(len(dev)), self._rank, self._world_size)
        tasks = [self._shaped_dev(dev[number], number) for number in mine]
        config = self._config
        with self._meter.paused():
            sums = score(self._lm, self._engine.point(), tasks, config.inner, config.shape, config.scoring)
        exact, f1, count = self._engine.total([sums.exact_match, sums.f1, sums.questions])
        found = Sums(exact, f1, max(count, 1))
        questions = int(count) // (self._world_size if alone else 1)
        state.dev.append(
            DevScore(state.step, found.exact_match / found.questions, found.f1 / found.questions, questions)
        )
        self._listener.scored(state.dev[-1])

    def _shaped_dev(self, task: Task, number: int) -> Task:
        """As training shapes it, but with all questions and nothing mixed in."""
        shape = self._config.shape.model_copy(update={"questions": None, "distractor_probability": 0.0})
        return shape_task(task, shape, (), self._config.seed, number)

    def _report(self, state: TrainState) -> StepReport:
        recent = state.losses[-self._config.watch.every :]
        sizes = self._engine.step_sizes().sort().values
        middle = float(sizes[len(sizes) // 2])
        seconds, passages, tokens = self._meter.rates()
        return StepReport(
            step=state.step,
            steps=self._config.optimizer.steps,
            loss=sum(recent) / max(1, len(recent)),
            inner_loss=self._meter.inner_loss,
            seconds=seconds,
            passages_per_second=passages * self._world_size / seconds,
            tokens_per_second=tokens * self._world_size / seconds,
            step_size_low=float(sizes[0]),
            step_size_middle=middle,
            step_size_high=float(sizes[-1]),
            memory_gb=peak_memory(self._lm.device) / 1e9,
            skipped=len(state.skipped),
            gradient_error=self._meter.error,
        )
