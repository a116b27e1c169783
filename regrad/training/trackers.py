"""Where reports go: lines of text, TensorBoard files, and Weights & Biases or MLflow if they are installed."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from regrad.errors import ConfigError
from regrad.storage import Storage
from regrad.training.callbacks import StepReport
from regrad.training.checkpoint import DevScore
from regrad.training.config import TrackingConfig


class Sink(Protocol):
    """Receives numbers."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step, by name."""

    def close(self) -> None:
        """Called once, after the last numbers."""


class Watcher:
    """Turns the reports of a run into lines, for `say`, and numbers, for the sinks."""

    def __init__(self, say: Callable[[str], None], sinks: list[Sink]) -> None:
        self._say, self._sinks = say, sinks

    def __call__(self, item: str | StepReport | DevScore) -> None:
        """One note, report or score of a worker."""
        if isinstance(item, str):
            self._say(item)
            return
        if isinstance(item, StepReport):
            self._say(step_line(item))
            names = ("steps", "loss", "seconds", "memory_gb", "skipped")
            rates = {f"{unit}_per_second": rate for unit, rate in item.rates.items()}
            numbers = {name: getattr(item, name) for name in names} | rates | dict(item.numbers)
            values = {f"train/{name}": float(value) for name, value in numbers.items()}
        else:
            self._say(score_line(item))
            values = {f"dev/{name}": float(value) for name, value in item.values.items()}
        for sink in self._sinks:
            sink.log(values, item.step)

    def close(self) -> None:
        """Flush everything."""
        for sink in self._sinks:
            sink.close()


def step_line(report: StepReport) -> str:
    """One report as a line of the log."""
    parts = [
        f"step {report.step}/{report.steps}",
        f"loss {report.loss:.4f}",
        *(f"{_words(name)} {number:.3g}" for name, number in report.numbers.items()),
        *(f"{rate:.0f} {unit}/s" for unit, rate in report.rates.items()),
        f"{report.memory_gb:.2f} GB",
        f"{report.seconds:.0f} s",
    ]
    if report.skipped:
        parts.append(f"{report.skipped} steps skipped")
    return "  ".join(parts)


def score_line(score: DevScore) -> str:
    """One score as a line of the log."""
    return "  ".join([f"step {score.step}  dev", *(f"{_words(name)} {v:.4g}" for name, v in score.values.items())])


def _words(name: str) -> str:
    return name.replace("_", " ")


def make_sinks(watch: TrackingConfig, output: str, settings: dict[str, Any]) -> list[Sink]:
    """The sinks that `watch` asks for, for a run into `output` with these settings.

    Raises `ConfigError` if it names a tracker that is not installed.
    """
    sinks: list[Sink] = []
    if watch.wandb_project is not None:
        sinks.append(_WeightsAndBiases(watch.wandb_project, settings))
    if watch.mlflow_experiment is not None:
        sinks.append(_MLflow(watch.mlflow_experiment, settings))
    if watch.tensorboard:
        sinks.append(_TensorBoard(watch.location or f"{output}.logs"))
    return sinks


class _TensorBoard:
    """Event files in a directory; on an object store they are uploaded after each report."""

    def __init__(self, uri: str) -> None:
        from tensorboardX import SummaryWriter

        self._storage = Storage(uri)
        self._folder = (
            Path(self._storage.root) if self._storage.is_local else Path(tempfile.mkdtemp(prefix="regrad-logs-"))
        )
        self._writer = SummaryWriter(str(self._folder))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        if not self._storage.is_local:
            for file in self._folder.iterdir():
                self._storage.write(file.name, file.read_bytes())

    def close(self) -> None:
        self._writer.close()
        if not self._storage.is_local:
            shutil.rmtree(self._folder, ignore_errors=True)


class _WeightsAndBiases:
    def __init__(self, project: str, settings: dict[str, Any]) -> None:
        self._run = _installed("wandb").init(project=project, config=settings)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, experiment: str, settings: dict[str, Any]) -> None:
        self._mlflow = _installed("mlflow")
        self._mlflow.set_experiment(experiment)
        self._mlflow.start_run()
        self._mlflow.log_dict(settings, "settings.json")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"watch asks for {name}, which is not installed: `pip install {name}`",
            code="tracker_not_installed",
            package=name,
        ) from error
