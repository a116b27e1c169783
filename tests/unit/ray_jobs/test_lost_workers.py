"""What a training run does when an attempt of Ray Train ends: with stand-ins for its trainer, without a cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, WorkerCrashedError
from ray.train import ControllerError, WorkerGroupError

from ray_jobs import train_runner
from ray_jobs.train_runner import fit_until_done, run_directory
from regrad.errors import CorpusError, TrainingError
from regrad.settings import WorkersConfig
from regrad.training.config import CheckpointConfig, TrainConfig
from tests.tools.refusals import refused

LEANER = "lower optimizer.micro_batch"
Fit = Callable[..., Any]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """A run whose attempts end with these errors, one after the other, and then well."""
    monkeypatch.setattr(train_runner, "wants_gpu", lambda cluster: False)

    def run(*errors: Exception, most: int = 1) -> Any:
        ends = iter(errors)

        class Trainer:
            def __init__(self, worker: Any, **settings: Any) -> None: ...

            def fit(self) -> str:
                for error in ends:
                    raise error
                return "done"

        monkeypatch.setattr(train_runner, "TrainerWithoutCleaner", Trainer)
        config = TrainConfig(
            output=str(tmp_path / "out"),
            checkpoints=CheckpointConfig(max_failures=most, resume=False),
            cluster=WorkersConfig(workers=1),
        )
        with run_directory(config, {}) as place:
            return fit_until_done(lambda settings: None, {}, config, place, "meta-training", LEANER)

    return run


OUT_OF_MEMORY = OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node ...\n")


@pytest.mark.parametrize(
    "error",
    [OUT_OF_MEMORY, ControllerError(OUT_OF_MEMORY), WorkerGroupError("of a worker", {0: OUT_OF_MEMORY})],
    ids=["bare", "of the controller", "of a worker"],
)
def test_memory_that_runs_out_is_one_sentence_with_what_to_change(fit: Fit, error: Exception) -> None:
    with refused(TrainingError, "out_of_memory") as info:
        fit(error, error)
    text = str(info.value)
    assert LEANER in text and "\n" not in text and len(text) < 400


def test_after_memory_ran_out_once_the_run_goes_on(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit(OUT_OF_MEMORY) == "done"
    assert "a worker was lost" in caplog.text and LEANER in caplog.text


def test_the_reason_of_a_lost_worker_ends_with_a_whole_word(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    words = " ".join(f"word{number}" for number in range(200))
    with caplog.at_level(logging.WARNING):
        assert fit(WorkerGroupError("of a worker", {0: WorkerCrashedError(), 1: RuntimeError(words)})) == "done"
        fit(WorkerGroupError("of a worker", {0: RuntimeError(words)}))
    shown = caplog.messages[-1].split("(", 1)[1].rsplit(")", 1)[0].removesuffix(" ...").split()
    assert shown[0] == "RuntimeError:" and set(shown[1:]) <= set(words.split())


def test_an_error_of_ours_is_raised_as_itself_whoever_else_failed(fit: Fit) -> None:
    ours = CorpusError("a bad task", code="bad_task")
    with refused(CorpusError, "bad_task"):
        fit(WorkerGroupError("two", {0: OUT_OF_MEMORY, 1: ours}))
