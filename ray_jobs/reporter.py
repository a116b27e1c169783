"""What a training worker hands on: the first one tells the driver, and checkpoints go through Ray Train."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import train
from ray.train import Checkpoint


class WorkerReporter:
    """One worker's line to the driver; all but the first only keep in step."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._first = train.get_context().get_world_rank() == 0

    def tell(self, item: Any) -> None:
        """Give the driver something to show or to log."""
        if self._first:
            self._progress.push.remote(item)

    def keep(self, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        """Keep what `save` writes into a folder as a checkpoint. Every worker has to call it, as Ray Train waits."""
        if not self._first:
            train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
