"""Who watches a run: lines of text, TensorBoard files, and Weights & Biases or MLflow if they are installed."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from regrad.errors import ConfigError
from regrad.storage import Storage
from regrad.training.meta.callbacks import StepReport
from regrad.training.meta.checkpoint import DevScore
from regrad.training.meta.config import MetaTrainConfig


class Sink(Protocol):
    """Takes numbers."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step, by name."""

    def close(self) -> None:
        """No more will come."""


class Watcher:
    """Turns reports into lines and numbers. `say` gets the lines."""

    def __init__(self, say: Callable[[str], None], sinks: list[Sink]) -> None:
        self._say, self._sinks = say, sinks

    def __call__(self, item: str | StepReport | DevScore) -> None:
        """One thing that a worker told."""
        if isinstance(item, str):
            self._say(item)
            return
        self._say(step_line(item) if isinstance(item, StepReport) else dev_line(item))
        group = "train" if isinstance(item, StepReport) else "dev"
        values = {f"{group}/{name}": float(v) for name, v in asdict(item).items() if v is not None and name != "step"}
        for sink in self._sinks:
            sink.log(values, item.step)

    def close(self) -> None:
        """Flush everything."""
        for sink in self._sinks:
            sink.close()


def step_line(report: StepReport) -> str:
    """What a person reads of one report."""
    skipped = f"  {report.skipped} steps skipped" if report.skipped else ""
    error = f"  gradient error {report.gradient_error:.0e}" if report.gradient_error is not None else ""
    sizes = f"{report.step_size_low:.3g} to {report.step_size_high:.3g}"
    return (
        f"step {report.step}/{report.steps}  loss {report.loss:.3f}  passage loss {report.inner_loss:.3f}  "
        f"step sizes {sizes}  {report.tokens_per_second:.0f} tokens/s  {report.memory_gb:.2f} GB  "
        f"{report.seconds:.0f} s{error}{skipped}"
    )


def dev_line(score: DevScore) -> str:
    """What a person reads of one dev score."""
    return f"step {score.step}  dev EM {score.exact_match:.3f}  F1 {score.f1:.3f}  ({score.questions} questions)"


def make_sinks(config: MetaTrainConfig) -> list[Sink]:
    """As `config.watch` asks; raises `ConfigError` if it names a tracker that is not installed."""
    watch, settings = config.watch, config.model_dump(mode="json")
    sinks: list[Sink] = []
    if watch.wandb_project is not None:
        sinks.append(_WeightsAndBiases(watch.wandb_project, settings))
    if watch.mlflow_experiment is not None:
        sinks.append(_MLflow(watch.mlflow_experiment, settings))
    if watch.tensorboard:
        sinks.append(_TensorBoard(watch.location or f"{config.output}.logs"))
    return sinks


class _TensorBoard:
    """Event files in a directory. On an object store they are put there after each report."""

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
        raise ConfigError(f"watch asks for {name}, which is not installed: `pip install {name}`") from error
