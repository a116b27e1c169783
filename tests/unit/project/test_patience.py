"""Deadlines grow with what a calibration measures, and end all the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.tools import patience


def fresh(monkeypatch: pytest.MonkeyPatch, work: str, queue: float = 0.0) -> float:
    """The slowness of a machine that does this work, and on which so many processes wait for a processor."""
    monkeypatch.setattr(patience, "_WORK", work)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, queue * (os.cpu_count() or 1), 0.0))
    monkeypatch.setattr(patience, "_measured", patience._Measured())
    return patience.slowness()


def machine(monkeypatch: pytest.MonkeyPatch, *slowness: float) -> None:
    """What is measured, one time after the other."""
    found = iter(slowness)
    monkeypatch.setattr(patience, "slowness", lambda: next(found, slowness[-1]))


def test_a_slow_machine_gets_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 3.0)
    assert patience.patient(10) == 30


def test_slowness_is_measured_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "IDLE_SECONDS", 1e6)
    assert fresh(monkeypatch, "pass") == 1.0
    assert fresh(monkeypatch, "pass", queue=5.0) == 5.0, "a minute ago it was slow"
    monkeypatch.setattr(patience, "IDLE_SECONDS", 1e-6)
    assert fresh(monkeypatch, "pass") == patience.MOST


def test_a_deadline_waits_for_a_machine_that_became_busy_and_then_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4.0, 1.0)
    deadline = patience.Deadline(0.1)
    time.sleep(0.15)
    assert not deadline.over, "the machine is four times as slow now"
    time.sleep(0.4)
    assert deadline.over


def test_a_command_that_is_slow_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 1e6)
    done = patience.completed([sys.executable, "-c", "import time; time.sleep(0.3); print('done')"], 0.01)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_command_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 1.0)
    with pytest.raises(subprocess.TimeoutExpired):
        patience.completed([sys.executable, "-c", "import time; time.sleep(600)"], 0.1)


@pytest.mark.timeout(0.1)
def test_a_test_may_take_as_long_as_the_machine_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 1e6)
    time.sleep(0.3)


@pytest.mark.timeout(0.1)
def test_a_test_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4.0, 1.0)
    started = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match="Timeout"):
        time.sleep(600)
    assert time.monotonic() - started > 0.3


def test_many_threads_that_ask_at_once_measure_the_machine_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    measured = patience._Measured()
    monkeypatch.setattr(measured, "_measure", lambda: (calls.append(1), time.sleep(0.05), 2.0)[2])
    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(lambda _: measured(), range(64))) == {2.0}
    assert len(calls) == 1
