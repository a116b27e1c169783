"""Deadlines that fit the machine: a slow or busy one gets more time, and one that hangs is still found out.

A fixed piece of work is done on every processor at once, since the tests' clusters use all of them, and its time is
compared with what an idle machine takes. The same deadline in seconds is then as strict on both.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time

IDLE_SECONDS = 0.65
"""What the work below takes on two idle cores of an AMD EPYC; a quicker machine gets no less than the deadline."""
MOST = 12.0
_WORK = "x = 0\nfor i in range(6_000_000):\n    x = (x * 31 + i) & 0xFFFF"
_FRESH_SECONDS = 60.0


def slowness() -> float:
    """How many times as long as on an idle machine things take now: 1 to `MOST`; measured at most once a minute."""
    return _measured(int(time.monotonic() / _FRESH_SECONDS))


def patient(seconds: float) -> float:
    """The deadline on this machine, as it is now, of what an idle one does in `seconds`."""
    return seconds * slowness()


class Deadline:
    """A deadline for a loop that waits.

    When it is over the machine is measured again: it may have become busy since.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._started = seconds, time.monotonic()
        self._ends = self._started + patient(seconds)

    @property
    def over(self) -> bool:
        """Whether even a machine as slow as this one would be done by now."""
        if time.monotonic() > self._ends:
            self._ends = max(self._ends, self._started + patient(self._seconds))
        return time.monotonic() > self._ends


@functools.lru_cache(maxsize=1)
def _measured(minute: int) -> float:
    started = time.perf_counter()
    workers = [subprocess.Popen([sys.executable, "-c", _WORK]) for _ in range(os.cpu_count() or 1)]
    for worker in workers:
        worker.wait()
    return min(MOST, max(1.0, (time.perf_counter() - started) / IDLE_SECONDS))
