"""Deadlines that fit the machine: a slow or busy one gets more time, and one that hangs is still found out.

A deadline is written in seconds of an idle machine. When it is over the machine is measured, and it is over only if
even a machine as slow as this one would be done by now: nothing fails because it became slow in the meantime.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import pytest_timeout

IDLE_SECONDS = 0.65
"""What the work below takes on two idle cores of an AMD EPYC; a quicker machine gets no less than the deadline."""
MOST = 30.0
_WORK = "x = 0\nfor i in range(6_000_000):\n    x = (x * 31 + i) & 0xFFFF"
_FRESH_SECONDS = 60.0


def slowness() -> float:
    """How many times as long as on an idle machine things take: 1 to `MOST`; measured at most once a minute.

    Work on every processor at once, since the tests' clusters use all of them, says how it is now; how many processes
    waited for each of them in the last five minutes says how it was.
    """
    queue = os.getloadavg()[1] / (os.cpu_count() or 1)
    return min(MOST, max(1.0, queue, _measured()))


def patient(seconds: float) -> float:
    """The deadline on this machine, as it is now, of what an idle one does in `seconds`."""
    return seconds * slowness()


class Deadline:
    """A deadline for what waits; nothing is measured before an idle machine's time is over."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._started = seconds, time.monotonic()
        self._ends = self._started + seconds

    @property
    def over(self) -> bool:
        """Whether even a machine as slow as this one would be done by now."""
        if time.monotonic() > self._ends:
            self._ends = max(self._ends, self._started + patient(self._seconds))
        return time.monotonic() > self._ends

    @property
    def left(self) -> float:
        """Seconds until it is worth asking again whether it is over."""
        return max(0.05, self._ends - time.monotonic())


def finish(process: subprocess.Popen[Any], seconds: float) -> tuple[Any, Any]:
    """A process's output and errors once it has ended; the process is killed when the deadline is over."""
    deadline = Deadline(seconds)
    try:
        while True:
            try:
                return process.communicate(timeout=deadline.left)
            except subprocess.TimeoutExpired:
                if deadline.over:
                    raise
    except BaseException:  # also what ends a test that took too long
        process.kill()
        raise


def completed(command: Sequence[Any], seconds: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command that has run to its end, with its output and errors as text."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options) as process:
        stdout, stderr = finish(process, seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def watch(item: pytest.Item, settings: pytest_timeout.Settings) -> None:
    """Time a test as pytest-timeout would, but by a deadline that fits the machine."""
    deadline = Deadline(settings.timeout)

    def rung(signum: int, frame: object) -> None:
        __tracebackhide__ = True
        if deadline.over:
            pytest_timeout.timeout_sigalrm(item, settings)
        signal.setitimer(signal.ITIMER_REAL, deadline.left)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel  # type: ignore[attr-defined]  # what pytest-timeout calls in the end
    signal.signal(signal.SIGALRM, rung)
    signal.setitimer(signal.ITIMER_REAL, deadline.left)


class _Measured:
    """What one measurement said. Only one runs at a time: clients in many threads ask at once, and a measurement for
    each of them would be the load that they then measure."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found, self._until = 1.0, 0.0

    def __call__(self) -> float:
        with self._lock:
            if time.monotonic() >= self._until:
                self._found = self._measure()
                self._until = time.monotonic() + _FRESH_SECONDS
            return self._found

    @staticmethod
    def _measure() -> float:
        started = time.perf_counter()
        workers = [subprocess.Popen([sys.executable, "-c", _WORK]) for _ in range(os.cpu_count() or 1)]
        for worker in workers:
            worker.wait()
        return (time.perf_counter() - started) / IDLE_SECONDS


_measured = _Measured()
