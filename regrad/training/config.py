"""Settings that every training run has: its steps and learning rates, how it survives, and what it reports."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from regrad.settings import Location, Settings, WorkersConfig

Beta = Annotated[float, Field(ge=0, lt=1)]


class ScheduleConfig(Settings):
    """The steps of a run, the learning rate of each, and when the run gives up."""

    steps: int = Field(1000, ge=1)
    epochs: float | None = Field(None, gt=0, description="instead of steps: how often each item is drawn, on average")
    batch_size: int = Field(16, ge=1, description="items (tasks or examples) per step, over all workers")
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    warmup_start: float | None = Field(
        None, ge=0, le=1, description="share of the learning rate at the first step; null: 1 / steps of the warm-up"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="the learning rate after the warm-up; linear and cosine fall to zero"
    )
    max_bad_steps: int = Field(
        5, ge=1, description="stop after this many steps in a row whose loss or gradient is not finite"
    )
    precision: Literal["model", "auto", "bf16"] = Field(
        "model",
        description="the model's own data type; bf16 autocast; or auto: bf16 where a probe finds it right and faster",
    )

    @property
    def warmup_steps(self) -> int:
        """The steps of the warm-up, at least one."""
        return max(1, int(self.warmup_fraction * self.steps))

    def learning_rate_factor(self, step: int) -> float:
        """The share of the peak rate at `step` (the first is 0): linear warm-up to 1, then `schedule`."""
        warmup = self.warmup_steps
        if step < warmup:
            if self.warmup_start is None:
                return (step + 1) / warmup
            return self.warmup_start + (1 - self.warmup_start) * step / warmup
        done = min(1.0, (step - warmup) / max(1, self.steps - warmup))
        return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[self.schedule]

    def with_steps(self, items: int) -> Self:
        """The same settings with the number of steps (at least one) that `epochs` over this many items take."""
        if self.epochs is None:
            return self
        return self.model_copy(update={"steps": max(1, math.ceil(self.epochs * items / self.batch_size))})


class CheckpointConfig(Settings):
    """How a run survives."""

    every: int = Field(100, ge=1, description="steps")
    keep: int = Field(
        2, ge=1, description="number of checkpoints kept: the best by dev F1, else the newest; always the newest"
    )
    location: Location | None = Field(None, description="a place that all nodes share; null: `<output>.training`")
    max_failures: int = Field(3, ge=0, description="how many lost workers are replaced before the run gives up")
    resume: bool = Field(True, description="continue an unfinished run of this configuration; false: start again")


class TrackingConfig(Settings):
    """What a run reports, and where."""

    every: int = Field(50, ge=1, description="steps")
    tensorboard: bool = True
    location: Location | None = Field(None, description="directory of the TensorBoard files; null: `<output>.logs`")
    wandb_project: str | None = Field(None, description="Weights & Biases, if it is installed")
    mlflow_experiment: str | None = Field(None, description="MLflow, if it is installed")


class TrainConfig(Settings):
    """What the settings of every training job have, whatever it trains."""

    output: Location
    checkpoints: CheckpointConfig = CheckpointConfig()
    watch: TrackingConfig = TrackingConfig()
    seed: int = 0
    cluster: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _one_gpu_a_worker(self) -> Self:
        self.cluster.check_one_gpu("several GPUs train as several workers, at ZeRO 3 also a base too large for one")
        return self
