"""Fitting with Ray Train until it is done, whatever dies on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ray.train import Result, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.exceptions import TrainingFailedError

from ray_jobs.cluster import joined, wants_gpu
from ray_jobs.run_directory import RunDirectory
from regrad.config import WorkersConfig
from regrad.errors import RegradError, TrainingError

logger = logging.getLogger(__name__)


class RayTrainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's, without what only a shared cluster needs.

    Its cleaner frees what a dead driver held. A cluster of our own ends with its driver, and has no dashboard, which
    the cleaner asks: every training would wait 12 s for it at its end.
    """

    def _create_default_callbacks(self) -> list[Any]:
        found: list[Any] = super()._create_default_callbacks()
        return found if joined() else [item for item in found if not isinstance(item, PlacementGroupCleanerCallback)]


def scaling(workers: WorkersConfig) -> ScalingConfig:
    """What Ray Train is to take of the cluster."""
    return ScalingConfig(
        num_workers=workers.workers,
        use_gpu=wants_gpu(workers),
        resources_per_worker={"CPU": workers.cpus_per_worker},
    )


def fit_until_done(make_trainer: Callable[[], RayTrainer], place: RunDirectory, max_failures: int, what: str) -> Result:
    """A lost worker costs the steps since the last checkpoint.

    Raises `TrainingError` after more than `max_failures` losses without a new checkpoint between them, and for an error
    of ours at once.
    """
    if place.resumed:
        logger.info("going on with the unfinished run at %s", place.storage.uri)
    failures, mark = 0, place.mark()
    while True:
        try:
            return make_trainer().fit()
        except TrainingFailedError as error:
            cause = _cause(error)
            failures = 1 if place.mark() != mark else failures + 1
            if isinstance(cause, RegradError) or failures > max_failures:
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
