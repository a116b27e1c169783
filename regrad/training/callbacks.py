"""What a run reports, the listeners that it reports to, and the counters behind the reports."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch

from regrad.training.checkpoint import DevScore, Product, TrainCheckpoint


@dataclass(frozen=True)
class StepReport:
    """One logged step.

    `loss` is the mean over all workers and over the steps since the last report, `rates` are units a second of all
    workers (passages, tokens), and `numbers` whatever else the learner reports.
    """

    step: int
    steps: int
    loss: float
    seconds: float
    memory_gb: float
    skipped: int
    rates: Mapping[str, float] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


class Listener(Protocol):
    """Receives what happens in a run. All workers call every method at the same steps."""

    def note(self, text: str) -> None:
        """A remark for the log."""

    def report(self, report: StepReport) -> None:
        """Called every `watch.every` steps."""

    def scored(self, score: DevScore) -> None:
        """Called after the dev items were scored."""

    def checkpoint(self, checkpoint: TrainCheckpoint) -> None:
        """Called with each checkpoint; keeping it is up to the listener."""


class Silent:
    """A listener that does nothing."""

    def note(self, text: str) -> None:
        """See `Listener`."""

    def report(self, report: StepReport) -> None:
        """See `Listener`."""

    def scored(self, score: DevScore) -> None:
        """See `Listener`."""

    def checkpoint(self, checkpoint: TrainCheckpoint) -> None:
        """See `Listener`."""


class Best(Silent):
    """Keeps in memory the product of the checkpoint with the highest value of one of the scores."""

    def __init__(self, number: str) -> None:
        self.product: Product | None = None
        self._number, self._best = number, float("-inf")

    def checkpoint(self, checkpoint: TrainCheckpoint) -> None:
        """See `Listener`."""
        score = checkpoint.state.latest_score
        if score is not None and score.values[self._number] > self._best:
            self.product, self._best = checkpoint.product, score.values[self._number]


class Meter:
    """Counts what this worker has trained on since the run, or the resumed part of it, began."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._counts: Counter[str] = Counter()

    @property
    def seconds(self) -> float:
        """Since the start, without pauses."""
        return max(1e-9, time.monotonic() - self._started)

    def count(self, units: Mapping[str, int]) -> None:
        """Passages, tokens and so on of one step."""
        self._counts.update(units)

    def rates(self, workers: int) -> dict[str, float]:
        """Units a second, of all workers."""
        return {name: count * workers / self.seconds for name, count in self._counts.items()}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block does not count."""
        began = time.monotonic()
        yield
        self._started += time.monotonic() - began


def peak_memory(device: torch.device) -> int:
    """The peak memory of this process in bytes: on the GPU, or resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
