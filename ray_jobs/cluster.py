"""Joining a Ray cluster: the one that `RAY_ADDRESS` names (as `ray job submit` sets it), or a local one of our own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

from ray_jobs._ray_compat import silence_worker_logs
from ray_jobs.haproxy import open_front_door
from regrad.errors import ClusterError, RegradError, StorageError
from regrad.settings import WorkersConfig

T = TypeVar("T")

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")  # workers wait so long at every checkpoint


@contextmanager
def cluster() -> Iterator[None]:
    """Connected to Ray inside the block. A cluster that the block started is stopped at its end.

    Raises `ClusterError` if `RAY_ADDRESS` names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        _join(address) if address else _start_local()
    except Exception as error:  # Ray raises a bare one if it does not come up in time
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        verb = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise ClusterError(f"cannot {verb}: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def wants_gpu(config: WorkersConfig) -> bool:
    """Whether the workers should take a GPU each: as configured, or if the cluster has one for each."""
    return config.gpu if config.gpu is not None else ray.cluster_resources().get("GPU", 0) >= config.workers


def require_workers(config: WorkersConfig) -> None:
    """Raise `ClusterError` if a cluster of one machine, which cannot grow, is too small for the workers."""
    there = ray.cluster_resources()
    wanted = {"CPU": config.workers * config.cpus_per_worker, "GPU": config.workers if config.gpu else 0}
    for kind, count in wanted.items():
        if count > there.get(kind, 0) and not joined():
            raise ClusterError(
                f"{config.workers} workers are asked for, which take {count:g} {kind}s, but this machine has "
                f"{there.get(kind, 0):g}; use fewer with --set cluster.workers=1"
            )


def joined() -> bool:
    """Whether jobs run on a cluster that somebody else started (and that may grow)."""
    return bool(os.environ.get("RAY_ADDRESS"))


def run_task(function: Callable[..., T], *arguments: Any, num_cpus: float = 0.0) -> T:
    """Run a function on some node and wait; an error of ours comes back as itself."""
    task = ray.remote(num_cpus=num_cpus, max_retries=0)(function)
    try:
        result: T = ray.get(task.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from None
    return result


def cause_of(error: BaseException) -> BaseException:
    """The error that a task raised, freed of Ray's wrapping (which can be nested); ours if it is a full disk or so."""
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    if isinstance(error, OSError) and not isinstance(error, RegradError):
        return StorageError(error.strerror or str(error))
    if isinstance(error, RegradError):
        # Ray Data adds advice of its own, about retries, to whatever a task of it raised.
        error.args = tuple(str(item).partition("\nFailed to apply UDF transform")[0] for item in error.args)
    return error


def device() -> str:
    """Where this worker computes: on the GPU that it was given, or on the CPU even if the machine has GPUs."""
    return "cuda" if ray.get_gpu_ids() else "cpu"


def _join(address: str) -> None:
    ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)


def _start_local() -> None:
    """A cluster of this machine alone. Its processes log to files only: a person sees our own lines."""
    silence_worker_logs()
    open_front_door()
    ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
