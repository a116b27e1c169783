"""The listener of a training worker: the first one tells the driver, and checkpoints go through Ray Train."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ray import train
from ray.train import Checkpoint as RayCheckpoint

from ray_jobs.progress import progress_channel
from regrad.training.callbacks import StepReport
from regrad.training.checkpoint import Checkpoint, DevScore
from regrad.training.config import TrainConfig
from regrad.training.trackers import Watcher, make_sinks
from regrad.training.workers import Workers

logger = logging.getLogger(__name__)


@contextmanager
def watching(config: TrainConfig) -> Iterator[Any]:
    """On the driver: lines on the log, numbers to the configured trackers; gives workers the handle to push to."""
    sinks = make_sinks(config.watch, config.output, config.model_dump(mode="json"))
    with closing(Watcher(logger.info, sinks)) as watcher, progress_channel(watcher) as progress:
        yield progress


def workers_of_run() -> Workers:
    """On a worker: its place among all of them."""
    context = train.get_context()
    return Workers(context.get_world_rank(), context.get_world_size(), context.get_local_world_size())


@contextmanager
def checkpoint_to_resume() -> Iterator[Path | None]:
    """On a worker: a directory with the checkpoint to go on from, if there is one."""
    if found := train.get_checkpoint():
        with found.as_directory() as folder:
            yield Path(folder)
    else:
        yield None


class WorkerReporter:
    """One worker's `Listener`; all but the first only keep in step."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._first = train.get_context().get_world_rank() == 0

    def note(self, text: str) -> None:
        """Tell the driver."""
        self._tell(text)

    def report(self, report: StepReport) -> None:
        """Tell the driver."""
        self._tell(report)

    def scored(self, score: DevScore) -> None:
        """Tell the driver."""
        self._tell(score)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Give it to Ray Train, with its scores, by which Ray keeps the best. It waits until all workers are here."""
        score = checkpoint.state.latest_score
        scores = {f"dev_{name}": number for name, number in score.values.items()} if score else {}
        metrics = {"step": checkpoint.state.step, **scores}
        if not self._first:
            train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder) / "checkpoint")
            train.report(metrics, checkpoint=RayCheckpoint.from_directory(f"{folder}/checkpoint"))

    def _tell(self, item: Any) -> None:
        if self._first:
            self._progress.push.remote(item)
