"""Joining a Ray cluster: the one that `RAY_ADDRESS` names (as `ray job submit` sets it), or a local one of our own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from regrad.config import WorkersConfig
from regrad.errors import ServeError

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


@contextmanager
def cluster() -> Iterator[None]:
    """Connected to Ray inside the block. A cluster that the block started is stopped at its end.

    Raises `ServeError` if `RAY_ADDRESS` names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        dashboard = False if address == "local" else None
        ray.init(address=address, include_dashboard=dashboard, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ServeError(f"cannot join the Ray cluster at {address}: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def wants_gpu(config: WorkersConfig) -> bool:
    """Whether the workers should take a GPU each: as configured, or if the cluster has any."""
    return config.gpu if config.gpu is not None else ray.cluster_resources().get("GPU", 0) > 0
