"""Deadlines grow with what a calibration measures, and end all the same."""

from __future__ import annotations

import time

import pytest

from tests.tools import patience


def test_a_slow_machine_gets_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "slowness", lambda: 3.0)
    assert patience.patient(10) == 30


def test_slowness_is_measured_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_WORK", "pass")
    patience._measured.cache_clear()
    assert patience.slowness() == 1.0
    monkeypatch.setattr(patience, "IDLE_SECONDS", 1e-6)
    patience._measured.cache_clear()
    assert patience.slowness() == patience.MOST
    patience._measured.cache_clear()


def test_a_deadline_waits_for_a_machine_that_became_busy_and_then_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = iter([1.0, 4.0, 1.0, 1.0])
    monkeypatch.setattr(patience, "slowness", lambda: next(slow, 1.0))
    deadline = patience.Deadline(0.1)
    time.sleep(0.15)
    assert not deadline.over, "the machine is four times as slow now"
    time.sleep(0.4)
    assert deadline.over
