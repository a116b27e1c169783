"""How many replicas load asks for: Serve's context is stood in for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from serve_app.scaling import QUESTIONS, replicas_for_questions


@pytest.mark.parametrize(
    ("questions", "calls", "replicas"),
    [
        ({"a": 30.0, "b": 34.0}, 3.0, 8.0),  # micro-batches
        ({"a": 2.0}, 16.0, 2.0),  # calls that wait for a replica
        ({}, 0.0, 0.0),
    ],
)
def test_a_micro_batch_counts_as_its_questions(questions: dict[str, float], calls: float, replicas: float) -> None:
    config = SimpleNamespace(target_ongoing_requests=8.0)
    context = SimpleNamespace(aggregated_metrics={QUESTIONS: questions}, total_num_requests=calls, config=config)
    assert replicas_for_questions(context) == (replicas, {})


def test_before_a_replica_has_counted_calls_are_what_there_is() -> None:
    config = SimpleNamespace(target_ongoing_requests=4.0)
    context = SimpleNamespace(aggregated_metrics=None, total_num_requests=8.0, config=config)
    assert replicas_for_questions(context) == (2.0, {})
