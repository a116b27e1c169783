"""Which task is drawn when: fixed by the seed and the step, whatever the number of workers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from regrad.errors import TrainingError


class DrawOrder:
    """Draws from several sources in a fixed proportion; each source in a fresh permutation every epoch.

    `sizes` are the numbers of tasks of the sources and `weights` their shares (a source's size where None).
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float | None] | None = None, seed: int = 0) -> None:
        if not sizes or not all(sizes):
            raise TrainingError("every source needs at least one task")
        self._sizes, self._seed = sizes, seed
        given = weights or [None] * len(sizes)
        shares = [float(size if weight is None else weight) for size, weight in zip(sizes, given, strict=True)]
        self._shares = [share / sum(shares) for share in shares]

    def draws(self, count: int) -> Iterator[tuple[int, int]]:
        """The first `count` draws: (source, number of the task in it). The source furthest behind its share is next."""
        drawn = [0] * len(self._sizes)
        orders: list[list[int]] = [[] for _ in self._sizes]
        for position in range(count):
            behind = [share * (position + 1) - n for share, n in zip(self._shares, drawn, strict=True)]
            source = behind.index(max(behind))
            epoch, place = divmod(drawn[source], self._sizes[source])
            if place == 0:
                orders[source] = self._permutation(source, epoch)
            drawn[source] += 1
            yield source, orders[source][place]

    def _permutation(self, source: int, epoch: int) -> list[int]:
        order = list(range(self._sizes[source]))
        random.Random(f"{self._seed}/{source}/{epoch}").shuffle(order)
        return order


def share_of(batch: Sequence[int], rank: int, world_size: int) -> list[int]:
    """This worker's part of a global batch."""
    return list(batch[rank::world_size])
