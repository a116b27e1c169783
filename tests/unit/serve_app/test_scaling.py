"""Replicas by questions: what a replica has in hand, and how many replicas that asks for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from serve_app.app import replicas_for_questions
from serve_app.observability import CALLS, QUESTIONS, InHand


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_in_hand_is_averaged_over_the_time_since_the_last_question() -> None:
    clock = Clock()
    in_hand = InHand(clock)
    with in_hand.call(8):
        clock.now = 1.0
        with in_hand.call(2):
            clock.now = 2.0
    clock.now = 4.0
    assert in_hand.averages() == {QUESTIONS: (8 + 10) / 4, CALLS: (1 + 2) / 4}
    clock.now = 5.0
    assert in_hand.averages() == {QUESTIONS: 0.0, CALLS: 0.0}


def test_a_call_that_fails_is_over() -> None:
    clock = Clock()
    in_hand = InHand(clock)
    with pytest.raises(RuntimeError), in_hand.call(3):
        raise RuntimeError("it failed")
    clock.now = 1.0
    assert in_hand.averages() == {QUESTIONS: 0.0, CALLS: 0.0}


def test_asked_twice_at_one_moment_it_says_what_is_there_now() -> None:
    in_hand = InHand(Clock())
    with in_hand.call(3):
        assert in_hand.averages() == {QUESTIONS: 3.0, CALLS: 1.0}


def context(told: dict[str, dict[str, float]], calls: float) -> Any:
    config = AutoscalingConfig(min_replicas=1, max_replicas=9, target_ongoing_requests=4)
    return SimpleNamespace(aggregated_metrics=told, total_num_requests=calls, config=config)


@pytest.mark.parametrize(
    ("told", "calls", "replicas"),
    [
        pytest.param({QUESTIONS: {"a": 24.0, "b": 8.0}, CALLS: {"a": 1.0, "b": 1.0}}, 2.0, 8.0, id="all are in hand"),
        pytest.param({QUESTIONS: {"a": 16.0}, CALLS: {"a": 1.0}}, 3.0, 12.0, id="two calls wait for the replica"),
        pytest.param({QUESTIONS: {"a": 0.5}, CALLS: {"a": 0.5}}, 0.5, 0.125, id="one question at a time"),
        pytest.param({}, 8.0, 2.0, id="no replica has said anything"),
        pytest.param({QUESTIONS: {"a": 0.0}, CALLS: {"a": 0.0}}, 0.0, 0.0, id="nothing to do"),
    ],
)
def test_replicas_are_those_that_the_questions_need(
    told: dict[str, dict[str, float]], calls: float, replicas: float
) -> None:
    assert replicas_for_questions(context(told, calls))[0] == pytest.approx(replicas)
