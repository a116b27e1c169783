"""Machines that a job has had, by kind, and for how long: what it costs follows from that and their prices.

A machine counts as long as it is in the cluster while the job runs, whoever else uses it: that is what is paid for. A
kind is that of `cluster.yaml` or a worker group of KubeRay; a machine without that label is a `machine`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from regrad.rebuild.records import Money
from regrad.settings import OTHER_MACHINES, WorkersConfig

GROUP = "ray.io/node-group"
"""Ray's label of a machine that has its kind."""

_metering: list[NodeMeter] = []


class NodeMeter:
    """Counts hours of machines by kind, from the kinds that it is told of at any time; first of this machine alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, clock()
        self._there = Counter([OTHER_MACHINES])
        self._seconds: Counter[str] = Counter()

    def there_are(self, kinds: Iterable[str]) -> None:
        """From now on there are machines of these kinds, each as often as it is named."""
        self._count()
        self._there = Counter(kinds)

    def hours(self) -> dict[str, float]:
        """Of each kind until now."""
        self._count()
        return {kind: round(seconds / 3600, 6) for kind, seconds in sorted(self._seconds.items())}

    def _count(self) -> None:
        now = self._clock()
        for kind, machines in self._there.items():
            self._seconds[kind] += machines * (now - self._since)  # type: ignore[assignment]
        self._since = now


@contextmanager
def metered() -> Iterator[NodeMeter]:
    """A meter that hears of the machines of the clusters that are joined inside the block."""
    meter = NodeMeter()
    _metering.append(meter)
    try:
        yield meter
    finally:
        _metering.remove(meter)


def nodes_are(nodes: Iterable[Mapping[str, Any]]) -> None:
    """Tell the meters of a cluster's nodes, as `ray.nodes` describes them."""
    kinds = [str(one.get("Labels", {}).get(GROUP) or OTHER_MACHINES) for one in nodes if one["Alive"]]
    for meter in _metering:
        meter.there_are(kinds)


def money_of(hours: Mapping[str, float], config: WorkersConfig) -> Money | None:
    """What these hours cost; None if one of the kinds has no price."""
    prices = {kind: config.node_hour.get(kind, config.node_hour.get(OTHER_MACHINES)) for kind in hours}
    if not prices or None in prices.values():
        return None
    amount = sum(hours[kind] * price for kind, price in prices.items() if price)
    return Money(amount=round(amount, 6), currency=config.currency)
