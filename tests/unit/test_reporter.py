"""Of all workers, the first alone tells the driver and writes checkpoints; the others report in step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import train

from ray_jobs.reporter import WorkerReporter


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_worker_tells_and_saves(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    told: list[str] = []
    reported: list[tuple[dict[str, Any], bytes | None]] = []

    def report(metrics: dict[str, Any], checkpoint: Any = None) -> None:
        reported.append((metrics, (Path(checkpoint.path) / "state").read_bytes() if checkpoint else None))

    def write_state(folder: Path) -> None:
        (folder / "state").write_bytes(b"s")

    context = SimpleNamespace(get_world_rank=lambda: rank)
    monkeypatch.setattr(train, "get_context", lambda: context)
    monkeypatch.setattr(train, "report", report)
    worker = WorkerReporter(SimpleNamespace(push=SimpleNamespace(remote=told.append)))
    worker.tell("step 1")
    worker.keep({"step": 1}, write_state)
    assert told == ([] if rank else ["step 1"])
    assert reported == [({"step": 1}, None if rank else b"s")]
