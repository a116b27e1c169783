"""Of all workers, the first alone tells the driver and writes checkpoints; the others report in step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import train

from ray_jobs.train_runner import WorkerReporter
from regrad.training.checkpoint import CARD, DevScore, TrainCheckpoint, TrainState
from tests.tools.regression import LineLearner


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_worker_tells_and_saves(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    told: list[str] = []
    reported: list[tuple[dict[str, Any], list[str] | None]] = []

    def report(metrics: dict[str, Any], checkpoint: Any = None) -> None:
        files = sorted(path.name for path in Path(checkpoint.path).iterdir()) if checkpoint else None
        reported.append((metrics, files))

    context = SimpleNamespace(get_world_rank=lambda: rank)
    monkeypatch.setattr(train, "get_context", lambda: context)
    monkeypatch.setattr(train, "report", report)
    worker = WorkerReporter(SimpleNamespace(push=SimpleNamespace(remote=told.append)))
    worker.note("step 1")
    learner, scored = LineLearner(), TrainState(1, scores=[DevScore(1, {"f1": 0.5})])
    for state in (scored, TrainState(2)):
        worker.checkpoint(TrainCheckpoint("kind", "base", state, learner.tensors(), "line", learner.product(state)))
    assert told == ([] if rank else ["step 1"])
    files = None if rank else [CARD, "line", "state.safetensors"]
    assert reported == [({"step": 1, "dev_f1": 0.5}, files), ({"step": 2}, files)]
