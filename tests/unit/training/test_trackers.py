"""Who watches a training: lines, TensorBoard's files, Weights & Biases and MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regrad.errors import ConfigError
from regrad.training.callbacks import StepReport
from regrad.training.checkpoint import DevScore
from regrad.training.config import TrackingConfig
from regrad.training.trackers import Sink, Watcher, make_sinks, score_line, step_line
from tests.tools.refusals import refused

REPORT = StepReport(10, 20, 1.5, 3.0, 0.5, 1, {"tokens": 5.0}, {"step_size_low": 0.1, "gradient_error": 2e-6})
SCORE = DevScore(20, {"exact_match": 0.5, "f1": 0.75, "questions": 8})


def sinks(tmp_path: Path, **watch: Any) -> list[Sink]:
    return make_sinks(TrackingConfig(**watch), str(tmp_path / "m"), {"seed": 0})


def test_watchers_see_lines_and_tensorboard_files(tmp_path: Path) -> None:
    lines: list[str] = []
    watcher = Watcher(lines.append, sinks(tmp_path))
    for item in ("a note", REPORT, SCORE):
        watcher(item)
    watcher.close()
    assert lines == ["a note", step_line(REPORT), score_line(SCORE)]
    assert lines[1] == (
        "step 10/20  loss 1.5000  step size low 0.1  gradient error 2e-06  5 tokens/s  0.50 GB  3 s  1 steps skipped"
    )
    assert lines[2] == "step 20  dev  exact match 0.5  f1 0.75  questions 8"
    [events] = (tmp_path / "m.logs").iterdir()
    content = events.read_bytes()
    for tag in (b"train/loss", b"train/step_size_low", b"train/tokens_per_second", b"dev/f1", b"dev/exact_match"):
        assert tag in content


def test_trackers_that_are_not_installed_are_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name, key in (("wandb", "wandb_project"), ("mlflow", "mlflow_experiment")):
        monkeypatch.setitem(sys.modules, name, None)
        with refused(ConfigError, "tracker_not_installed", package=name):
            sinks(tmp_path, tensorboard=False, **{key: "mine"})
    assert sinks(tmp_path, tensorboard=False) == []


def test_weights_and_biases_and_mlflow_get_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against stand-ins with the calls of the real clients that are used."""
    import sys
    from unittest.mock import MagicMock

    wandb, mlflow = MagicMock(), MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    made = sinks(tmp_path, wandb_project="p", mlflow_experiment="e", tensorboard=False)
    watcher = Watcher(lambda _: None, made)
    watcher(SCORE)
    watcher.close()
    expected = {"dev/exact_match": 0.5, "dev/f1": 0.75, "dev/questions": 8.0}
    wandb.init.assert_called_once_with(project="p", config={"seed": 0})
    wandb.init.return_value.log.assert_called_once_with(expected, step=20)
    wandb.init.return_value.finish.assert_called_once()
    mlflow.set_experiment.assert_called_once_with("e")
    mlflow.log_metrics.assert_called_once_with(expected, step=20)
    mlflow.end_run.assert_called_once()
