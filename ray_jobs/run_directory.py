"""The directory of an unfinished run: its settings, and Ray Train's checkpoints. It is removed when the run is done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import CheckpointConfig, RunConfig
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from ray_jobs.whole_files import WholeFiles
from regrad.config import FinetuneConfig, MetaTrainConfig
from regrad.errors import TrainingError
from regrad.locking import exclusive
from regrad.storage import Storage, check_replaceable

_SETTINGS, _CHECKPOINTS = "run.json", "checkpoints"
_FREE = {"output", "checkpoints", "watch", "cluster"}  # what a resumed run may change: none of it changes a number


@contextmanager
def run_directory(config: MetaTrainConfig | FinetuneConfig, data: dict[str, Any]) -> Iterator[RunDirectory]:
    """The run's directory, for this driver alone; raises `TrainingError` if another one trains into it now."""
    storage = Storage(config.checkpoints.location or f"{config.output}.training")
    with exclusive(storage, TrainingError(f"another run is training into {config.output} now")):
        check_replaceable(storage.uri, _SETTINGS)
        yield RunDirectory(config, data, storage)


class RunDirectory:
    """Raises `TrainingError` if another run, with other settings or data, was left unfinished there."""

    def __init__(self, config: MetaTrainConfig | FinetuneConfig, data: dict[str, Any], storage: Storage) -> None:
        self._config, self.storage = config, storage
        settings = {**config.model_dump(mode="json", exclude=_FREE), "data": data}
        if not config.checkpoints.resume:
            self.remove()
        self.resumed = storage.exists(_SETTINGS)
        if self.resumed:
            self._compare(_settings(storage), settings)
        else:
            storage.write(_SETTINGS, json.dumps(settings, indent=1).encode())

    def run_config(self) -> RunConfig:
        """For Ray Train: where checkpoints go and which are kept."""
        keep = self._config.checkpoints.keep
        scored = isinstance(self._config, MetaTrainConfig) and self._config.dev
        best = {"checkpoint_score_attribute": "dev_f1", "checkpoint_score_order": "max"} if scored else {}
        handler = WholeFiles() if self.storage.is_local else FSSpecHandler(self.storage.fs)
        return RunConfig(
            name=_CHECKPOINTS,
            storage_path=self.storage.root,
            storage_filesystem=PyFileSystem(handler),
            checkpoint_config=CheckpointConfig(num_to_keep=keep, **best),
        )

    def remove(self) -> None:
        """Remove what belongs to the run, and the directory if nothing else is in it."""
        Storage(f"{self.storage.uri}/{_CHECKPOINTS}").remove()
        self.storage.remove_file(_SETTINGS)
        if not self.storage.list():
            self.storage.remove()

    def mark(self) -> bytes:
        """Changes when a new checkpoint is complete: Ray's list of them, in which what a failed upload left is not."""
        name = f"{_CHECKPOINTS}/{CHECKPOINT_MANAGER_SNAPSHOT_FILENAME}"
        return self.storage.read(name) if self.storage.exists(name) else b""

    def _compare(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        differences = list(_differences(before, now))
        if differences:
            raise TrainingError(
                f"an unfinished run at {self.storage.uri} has other settings: {'; '.join(differences[:8])}. "
                "Finish it with its own, or discard it with --set checkpoints.resume=false"
            )


def _settings(storage: Storage) -> dict[str, Any]:
    try:
        found = json.loads(storage.read(_SETTINGS))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise TrainingError(
            f"{storage.uri}/{_SETTINGS} is damaged; discard the run with --set checkpoints.resume=false"
        )
    return found


def _differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}):
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield f"{key} was {before!r:.60}, is {now!r:.60}"
