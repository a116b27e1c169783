"""A training run under Ray Train: its directory, its checkpoints, and fitting again until it is done."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import CheckpointConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from ray_jobs._ray_compat import CHECKPOINT_LIST, TrainerWithoutCleaner
from ray_jobs.atomic_fs import WholeFiles
from ray_jobs.cluster import joined, wants_gpu
from regrad.errors import RegradError, TrainingError
from regrad.locking import exclusive
from regrad.settings import WorkersConfig
from regrad.storage import Storage, check_replaceable
from regrad.training.config import TrainConfig

_SETTINGS, _CHECKPOINTS = "run.json", "checkpoints"
_FREE = {"output", "checkpoints", "watch", "cluster"}  # what a resumed run may change: none of it changes a number


@contextmanager
def run_directory(config: TrainConfig, data: dict[str, Any], best_by: str | None = None) -> Iterator[RunDirectory]:
    """The run's directory, for this driver alone; raises `TrainingError` if another one trains into it now.

    Checkpoints with the highest `best_by` are kept; without it, the newest.
    """
    storage = Storage(config.checkpoints.location or f"{config.output}.training")

    def busy(holder: str) -> TrainingError:
        return TrainingError(
            f"another run is training into {config.output} now; wait for it, or choose another output (it is {holder})"
        )

    with exclusive(storage, busy):
        check_replaceable(storage.uri, _SETTINGS)
        yield RunDirectory(config, data, storage, best_by)


class RunDirectory:
    """Raises `TrainingError` if another run, with other settings or data, was left unfinished there."""

    def __init__(self, config: TrainConfig, data: dict[str, Any], storage: Storage, best_by: str | None = None) -> None:
        self._keep, self._best_by, self.storage = config.checkpoints.keep, best_by, storage
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
        best = {"checkpoint_score_attribute": self._best_by, "checkpoint_score_order": "max"} if self._best_by else {}
        handler = WholeFiles() if self.storage.is_local else FSSpecHandler(self.storage.fs)
        return RunConfig(
            name=_CHECKPOINTS,
            storage_path=self.storage.root,
            storage_filesystem=PyFileSystem(handler),
            checkpoint_config=CheckpointConfig(num_to_keep=self._keep, **best),
        )

    def remove(self) -> None:
        """Remove what belongs to the run, and the directory if nothing else is in it."""
        Storage(f"{self.storage.uri}/{_CHECKPOINTS}").remove()
        self.storage.remove_file(_SETTINGS)
        if not self.storage.list():
            self.storage.remove()

    def mark(self) -> bytes:
        """Changes when a new checkpoint is complete: Ray's list of them, in which what a failed upload left is not."""
        name = f"{_CHECKPOINTS}/{CHECKPOINT_LIST}"
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


logger = logging.getLogger(__name__)


def trainer_class() -> Callable[..., TorchTrainer]:
    """Ray Train's trainer, without what only a shared cluster needs.

    Its cleaner frees what a dead driver held. A cluster of our own ends with its driver, and has no dashboard, which
    the cleaner asks: every training would wait 12 s for it at its end.
    """
    return TorchTrainer if joined() else TrainerWithoutCleaner


def scaling(workers: WorkersConfig) -> ScalingConfig:
    """What Ray Train is to take of the cluster."""
    return ScalingConfig(
        num_workers=workers.workers,
        use_gpu=wants_gpu(workers),
        resources_per_worker={"CPU": workers.cpus_per_worker},
    )


def fit(
    worker: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    config: TrainConfig,
    place: RunDirectory,
    what: str,
    **data: Any,
) -> Result:
    """Run `worker(settings)` on all workers until it is done, with Ray Train's `datasets` and so on in `data`.

    A lost worker costs the steps since the last checkpoint. Raises `TrainingError` after more than
    `checkpoints.max_failures` losses without a new checkpoint between them, and for an error of ours at once.
    """
    make_trainer = partial(
        trainer_class(),
        worker,
        train_loop_config=settings,
        scaling_config=scaling(config.cluster),
        run_config=place.run_config(),
        **data,
    )
    if place.resumed:
        logger.info("going on with the unfinished run at %s", place.storage.uri)
    failures, mark = 0, place.mark()
    while True:
        try:
            return make_trainer().fit()
        except TrainingFailedError as error:
            cause = _cause(error)
            failures = 1 if place.mark() != mark else failures + 1
            if isinstance(cause, RegradError) or failures > config.checkpoints.max_failures:
                raise TrainingError(_sentence(cause, place, what)) from error
            mark = place.mark()
            logger.warning("a worker was lost (%s); going on from the last checkpoint", _short(cause))


def _cause(error: TrainingFailedError) -> BaseException:
    """What went wrong in the first worker that failed: an error of ours if there is one among them."""
    by_rank: dict[int, Any] = getattr(error, "worker_failures", None) or {}
    failures: list[BaseException] = [getattr(failure, "cause", failure) for failure in by_rank.values()]
    ours = [failure for failure in failures if isinstance(failure, RegradError)]
    first: BaseException = [*ours, *failures, error][0]
    return first


def _sentence(cause: BaseException, place: RunDirectory, what: str) -> str:
    if isinstance(cause, RegradError):
        return str(cause)
    return f"{what} failed: {_short(cause)}; what was done is kept in {place.storage.uri}: run it again to go on"


def _short(cause: BaseException) -> str:
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[-1]:.200}"
