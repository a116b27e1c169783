"""Steps of a run, and the learning rate of each."""

from __future__ import annotations

import math
from typing import Literal, Protocol


class Schedule(Protocol):
    """What a rate depends on beside the step; settings of several jobs have these fields."""

    @property
    def steps(self) -> int:
        """Steps of the whole run."""

    @property
    def warmup_fraction(self) -> float:
        """The part of them in which the rate rises."""

    @property
    def warmup_start(self) -> float | None:
        """The factor of the first step of the warm-up; None: one over its steps."""

    @property
    def schedule(self) -> Literal["linear", "cosine", "constant"]:
        """How it falls after that."""


def learning_rate_factor(config: Schedule, step: int) -> float:
    """Linear warm-up to 1, then `config.schedule`, which is at zero (unless constant) at `config.steps`."""
    warmup = max(1, int(config.warmup_fraction * config.steps))
    if step < warmup:
        if config.warmup_start is None:
            return (step + 1) / warmup
        return config.warmup_start + (1 - config.warmup_start) * step / warmup
    done = min(1.0, (step - warmup) / max(1, config.steps - warmup))
    return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[config.schedule]


def steps_of_epochs(epochs: float, items: int, batch_size: int) -> int:
    """The steps in which each of the items is drawn `epochs` times, on average; at least one."""
    return max(1, math.ceil(epochs * items / batch_size))
