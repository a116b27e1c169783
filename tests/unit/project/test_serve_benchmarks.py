"""The arithmetic of the server's benchmarks, without a server."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from serve_overload import recovery

from regrad.planning.users import RequestOutcome, arrivals


def probe(*answers: tuple[float, float, int]) -> list[RequestOutcome]:
    return [RequestOutcome(0, due, seconds, status) for due, seconds, status in answers]


def test_arrivals_come_at_the_rate_at_irregular_times_and_the_same_for_a_seed() -> None:
    times = list(arrivals(200.0, 50.0, seed=3))
    gaps = [after - before for before, after in pairwise(times)]
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert max(times) < 50
    assert min(gaps) < 0.0005
    assert max(gaps) > 0.02
    assert times == list(arrivals(200.0, 50.0, seed=3))
    assert times != list(arrivals(200.0, 50.0, seed=4))


def test_recovery_is_when_five_answers_in_a_row_were_mostly_fast() -> None:
    slow = [(9.0, 3.0, 200), (12.0, 0.5, 200)]
    fast = [(13.0 + 0.1 * i, 0.1, 200) for i in range(5)]
    assert recovery(probe(*slow, *fast), ended=10.0, usual=0.1) == pytest.approx(3.3)  # the median allows two slow ones


def test_a_refusal_in_between_starts_the_count_anew() -> None:
    answers = [(10.0 + 0.1 * i, 0.1, 429 if i == 3 else 200) for i in range(12)]
    assert recovery(probe(*answers), ended=10.0, usual=0.1) == pytest.approx(0.9)


def test_a_server_that_stays_slow_never_recovers() -> None:
    answers = [(10.0 + 0.2 * i, 0.2, 200) for i in range(20)]
    assert recovery(probe(*answers), ended=10.0, usual=0.1) is None


def test_answers_before_the_end_of_the_overload_do_not_count() -> None:
    answers = [(1.0 + 0.1 * i, 0.1, 200) for i in range(50)]
    assert recovery(probe(*answers), ended=10.0, usual=0.1) is None
