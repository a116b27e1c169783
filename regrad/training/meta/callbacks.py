"""What a run tells about itself, to whom, and the counters behind it."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from regrad.meta_init import MetaInit
from regrad.training.meta.checkpoint import DevScore, TrainState


@dataclass(frozen=True)
class StepReport:
    """One logged step: the loss is the mean over all workers and over the steps since the last report."""

    step: int
    steps: int
    loss: float
    inner_loss: float
    seconds: float
    passages_per_second: float
    tokens_per_second: float
    step_size_low: float
    step_size_middle: float
    step_size_high: float
    memory_gb: float
    skipped: int
    gradient_error: float | None = None


class Listener(Protocol):
    """Who is told how a run goes. All workers call every method at the same steps."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def report(self, report: StepReport) -> None:
        """Every `watch.every` steps."""

    def scored(self, dev: DevScore) -> None:
        """The dev tasks were scored."""

    def checkpoint(self, state: TrainState, tensors: dict[str, Tensor], meta_init: MetaInit) -> None:
        """Keep this."""


class Silent:
    """A listener that does nothing."""

    def note(self, text: str) -> None:
        """See `Listener`."""

    def report(self, report: StepReport) -> None:
        """See `Listener`."""

    def scored(self, dev: DevScore) -> None:
        """See `Listener`."""

    def checkpoint(self, state: TrainState, tensors: dict[str, Tensor], meta_init: MetaInit) -> None:
        """See `Listener`."""


class Meter:
    """Counts what was done since the run, or this part of it, began."""

    def __init__(self) -> None:
        self._started, self._passages, self._tokens = time.monotonic(), 0, 0
        self.inner_loss, self.error = float("nan"), None

    error: float | None

    def count(self, passages: int, tokens: int) -> None:
        """Passages and tokens that are trained on."""
        self._passages += passages
        self._tokens += tokens

    def losses(self, inner: float, error: float | None) -> None:
        """What the last step gave."""
        self.inner_loss, self.error = inner, error

    def rates(self) -> tuple[float, int, int]:
        """Seconds, passages and tokens so far."""
        return max(1e-9, time.monotonic() - self._started), self._passages, self._tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block does not count."""
        began = time.monotonic()
        yield
        self._started += time.monotonic() - began


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process had on the GPU, or of resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
