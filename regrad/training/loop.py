"""The loop that all training shares: steps, skipped steps, reports, scores, checkpoints, and resuming from one.

It knows neither what is trained nor who listens. A `Learner` is what a step computes and updates: a MetaInit, a LoRA or
a network with its own parameters. The same loop runs in one process and on every worker of a job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from regrad.errors import Interrupted, TrainingError
from regrad.text import counted
from regrad.training.callbacks import Listener, Meter, Silent, StepReport, peak_memory
from regrad.training.checkpoint import DevScore, Product, TrainCheckpoint, TrainState, load_train_checkpoint
from regrad.training.config import CheckpointConfig, ScheduleConfig, TrackingConfig
from regrad.training.sampler import RunSettings, batches_of
from regrad.training.workers import Workers

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)


@dataclass(frozen=True)
class StepResult:
    """The loss of a step, the mean over all workers, and what this worker trained on (passages, tokens).

    No loss means that a loss or gradient was not finite on some worker: then no worker has updated anything.
    """

    loss: float | None
    counts: Mapping[str, int] = field(default_factory=dict)


class Unchanged(Exception):
    """A step that could not be taken, on all workers, before anything had changed: the run ends with `error`.

    The state before the step is whole, so it is kept.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Learner(Protocol[Item_contra]):
    """One worker's side of what is trained. Every worker calls every method at the same steps.

    A step is a function of the parameters, the optimiser's state, the batch and the factor: anything random in it has
    to be drawn from seed and step, or a resumed run differs from an undisturbed one.
    """

    @property
    def kind(self) -> str:
        """The name of this training; a checkpoint of another kind is refused."""

    @property
    def base(self) -> str:
        """The identity of the frozen weights; a checkpoint of others is refused."""

    @property
    def device(self) -> torch.device:
        """Where it trains."""

    @property
    def remedy(self) -> str:
        """What to change if the loss is not finite."""

    @property
    def product_name(self) -> str:
        """The directory of the product inside a checkpoint."""

    def prepare(self, batch: Sequence[Item_contra], state: TrainState) -> str:
        """Called before the first step and the first after a resume; may put something into `state.decided`.

        Returns a note for the listener, which may be empty.
        """

    def step(self, batch: Sequence[Item_contra], factor: float) -> StepResult:
        """One step on this worker's items, at `factor` times the peak learning rate.

        Raises `Interrupted`, or `Unchanged` with any other error, on all workers before anything has changed, if the
        run cannot go on but its state can.
        """

    def numbers(self) -> Mapping[str, float]:
        """What to report about the latest step, besides the loss."""

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and optimiser moments, whole and on the CPU."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""

    def product(self, state: TrainState) -> Product:
        """What the run would give if it ended here."""


def resume(learner: Learner[Any], checkpoint: AbstractContextManager[Path | None]) -> TrainState:
    """The state to continue from: that of the checkpoint, which is loaded into the learner, or a new one without it.

    Raises `TrainingError` if the checkpoint is damaged or of another run.
    """
    with checkpoint as folder:
        if folder is None:
            return TrainState()
        state, tensors = load_train_checkpoint(folder, learner.kind, learner.base)
    learner.load(tensors)
    return state


@dataclass(frozen=True)
class Scoring:
    """How a run is scored: after `every` steps (None: at the end only), by a function that all workers call.

    `remark` may say something about the scores so far; it is asked after each of them.
    """

    score: Callable[[int], DevScore]
    every: int | None = None
    remark: Callable[[Sequence[DevScore]], str] = lambda scores: ""


class Loop(Generic[Item]):
    """One worker's run of a learner."""

    def __init__(
        self,
        learner: Learner[Item],
        schedule: ScheduleConfig,
        checkpoints: CheckpointConfig,
        watch: TrackingConfig,
        listener: Listener | None = None,
        scoring: Scoring | None = None,
        workers: Workers = Workers(),
    ) -> None:
        self._learner, self._schedule, self._checkpoints, self._watch = learner, schedule, checkpoints, watch
        self._listener: Listener = listener or Silent()
        self._scoring, self._workers, self._meter = scoring, workers, Meter()
        self._kept_at = 0

    def run(self, batches: Iterable[Sequence[Item]], state: TrainState | None = None) -> TrainState:
        """Train until the last step; `batches` are this worker's items of each remaining step.

        Raises `TrainingError` if too many steps in a row are not finite, or the batches end too early, and what a step
        raises; the state is checkpointed before, unless the step may have left it half changed.
        """
        state = state or TrainState()
        scoring, prepared, self._kept_at = self._scoring, False, state.step
        for batch in batches:
            # 1. A step. What the learner decides once needs a batch to decide on.
            if not prepared and (note := self._learner.prepare(batch, state)):
                self._listener.note(note)
            prepared = True
            try:
                self._step(batch, state)
            except Unchanged as stopped:
                self._keep(state)
                raise stopped.error from stopped.error.__cause__
            except Interrupted:
                self._keep(state)
                raise
            if state.skipped_in_a_row >= self._most_bad:
                # No worker has updated anything in these steps; what diverged before must not displace what is good.
                if all(bool(tensor.isfinite().all()) for tensor in self._learner.tensors().values()):
                    self._keep(state)
                raise self._not_finite(state)
            last = state.step == self._schedule.steps
            # 2. A report, and a score, whose time does not count as training.
            if last or state.step % self._watch.every == 0:
                self._listener.report(self._report(state))
            if scoring and (last or (scoring.every is not None and state.step % scoring.every == 0)):
                with self._meter.paused():
                    state.scores.append(scoring.score(state.step))
                self._listener.scored(state.scores[-1])
                if remark := scoring.remark(state.scores):
                    self._listener.note(remark)
            # 3. A checkpoint; one for each score, since the best by score may become the result.
            if last or state.latest_score or state.step % self._checkpoints.every == 0:
                self._checkpoint(state)
        if state.step != self._schedule.steps:
            raise TrainingError(
                f"the batches ended at step {state.step} of {self._schedule.steps}",
                code="batches_ended",
                step=state.step,
                steps=self._schedule.steps,
            )
        return state

    def _keep(self, state: TrainState) -> None:
        """A checkpoint, unless this step has one or is the beginning of the run."""
        if state.step != self._kept_at:
            self._checkpoint(state)

    def _checkpoint(self, state: TrainState) -> None:
        self._kept_at = state.step
        learner, product = self._learner, self._learner.product(state)
        tensors = learner.tensors()
        self._listener.checkpoint(
            TrainCheckpoint(learner.kind, learner.base, state, tensors, learner.product_name, product)
        )

    def _step(self, batch: Sequence[Item], state: TrainState) -> None:
        started = time.perf_counter()
        result = self._learner.step(batch, self._schedule.learning_rate_factor(state.step))
        state.seconds += time.perf_counter() - started
        state.step += 1
        self._meter.count(result.counts)
        if result.loss is not None:
            state.losses.append(result.loss)
            return
        state.skipped.append(state.step)
        self._listener.note(f"step {state.step} is skipped: its loss or gradient is not finite")

    @property
    def _most_bad(self) -> int:
        # A run that is shorter than the limit, and has not one good step, has trained nothing.
        return min(self._schedule.max_bad_steps, self._schedule.steps)

    def _not_finite(self, state: TrainState) -> TrainingError:
        limit = self._most_bad
        return TrainingError(
            f"the loss or its gradient is not finite at step {state.step}, {counted(limit, 'time')} in a row; "
            f"{self._learner.remedy} and start again with checkpoints.resume=false (the last checkpoint is intact: "
            f"copy its {self._learner.product_name} first if you want to start from it)",
            code="not_finite",
            step=state.step,
            times=limit,
        )

    def _report(self, state: TrainState) -> StepReport:
        recent = state.losses[-self._watch.every :]
        return StepReport(
            step=state.step,
            steps=self._schedule.steps,
            loss=sum(recent) / max(1, len(recent)),
            seconds=self._meter.seconds,
            memory_gb=peak_memory(self._learner.device) / 1e9,
            skipped=len(state.skipped),
            rates=self._meter.rates(self._workers.count),
            numbers=self._learner.numbers(),
        )


def loop_of(
    learner: Learner[Item],
    config: RunSettings,
    items: int,
    listener: Listener | None = None,
    workers: Workers = Workers(),
) -> Loop[Item]:
    """The loop of a run with these settings on this number of items."""
    schedule = config.optimizer.with_steps(items)
    return Loop(learner, schedule, config.checkpoints, config.watch, listener, workers=workers)


def train_on(
    learner: Learner[Item],
    items: Sequence[Item],
    config: RunSettings,
    listener: Listener | None = None,
    workers: Workers = Workers(),
    checkpoint: AbstractContextManager[Path | None] = nullcontext(),
) -> TrainState:
    """One worker's run on a list of items, from the start or from a checkpoint; raises as `Loop.run` and `resume`."""
    state = resume(learner, checkpoint)
    batches = batches_of(items, config, state.step, workers)
    return loop_of(learner, config, len(items), listener, workers).run(batches, state)
