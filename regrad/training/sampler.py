"""The order of draws of every run: what a step trains on follows from the sources, the seed and the step alone.

So it is the same for any number of workers, which share each batch, and a resumed run needs no sampler state.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

from regrad.errors import TrainingError
from regrad.training.config import CheckpointConfig, ScheduleConfig, TrackingConfig
from regrad.training.workers import Workers

Item = TypeVar("Item")


@dataclass(frozen=True)
class SampleSource:
    """Items to draw from: their number, the seed of their permutations, and their weight (None: their number)."""

    size: int
    seed: str
    weight: float | None = None


class Draw(NamedTuple):
    """The draw at `position` of a run: item `number` of source `source`."""

    position: int
    source: int
    number: int


class Sampler:
    """Draws from the sources in proportion to their weights; each of them in a fresh permutation every epoch.

    Raises `TrainingError` if a source is empty.
    """

    def __init__(self, sources: Sequence[SampleSource], batch_size: int) -> None:
        if not sources or not all(source.size for source in sources):
            raise TrainingError("every source needs at least one item", code="source_empty")
        self._sources = sources
        self._batch_size = batch_size
        weights = [float(source.size if source.weight is None else source.weight) for source in sources]
        self._shares = [weight / sum(weights) for weight in weights]

    def steps(self, first: int, last: int, workers: Workers = Workers()) -> Iterator[list[Draw]]:
        """This worker's draws of each of the steps `first` to `last - 1` (the first step of a run is 0)."""
        draws = self.draws(first * self._batch_size, last * self._batch_size)
        for _ in range(first, last):
            yield workers.share(list(islice(draws, self._batch_size)))

    def draws(self, first: int, last: int) -> Iterator[Draw]:
        """The draws at positions `first` to `last - 1`. The source that is furthest behind its share is next."""
        drawn = [0] * len(self._sources)
        orders: dict[tuple[int, int], list[int]] = {}
        # Which source is next depends on all earlier draws, so a resumed run counts those before `first` again. It
        # makes no permutation for them: that of an epoch is a function of seed and epoch.
        for position in range(last):
            behind = [share * (position + 1) - n for share, n in zip(self._shares, drawn, strict=True)]
            source = behind.index(max(behind))
            epoch, place = divmod(drawn[source], self._sources[source].size)
            drawn[source] += 1
            if position < first:
                continue
            if (source, epoch) not in orders:
                orders.pop((source, epoch - 1), None)
                order = list(range(self._sources[source].size))
                random.Random(f"{self._sources[source].seed}/{epoch}").shuffle(order)
                orders[source, epoch] = order
            yield Draw(position, source, orders[source, epoch][place])


class RunSettings(Protocol):
    """What the settings of every run on one list of items have."""

    @property
    def optimizer(self) -> ScheduleConfig:
        """Its steps, and the size of their batches."""

    @property
    def checkpoints(self) -> CheckpointConfig:
        """How the run survives."""

    @property
    def watch(self) -> TrackingConfig:
        """What it reports."""

    @property
    def seed(self) -> int:
        """That of the order."""


def batches_of(
    items: Sequence[Item], config: RunSettings, first: int = 0, workers: Workers = Workers()
) -> Iterator[list[Item]]:
    """This worker's items of every step from `first` on, in the order of the settings' seed."""
    schedule = config.optimizer.with_steps(len(items))
    sampler = Sampler([SampleSource(len(items), str(config.seed))], schedule.batch_size)
    for draws in sampler.steps(first, schedule.steps, workers):
        yield [items[draw.number] for draw in draws]
