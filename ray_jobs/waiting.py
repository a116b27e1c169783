"""Room for a job: the log says what it waits for, and what a lost attempt has reserved is freed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import ray
from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup, remove_placement_group

from ray_jobs.cluster import gpus_of, joined, repeated
from regrad.settings import WorkersConfig

logger = logging.getLogger(__name__)

ONE_CPU = WorkersConfig(gpu=False)
"""What a task needs that is no worker."""

_SECONDS_TO_FIRST_LINE = 3.0
_SECONDS_BETWEEN_LINES = 30.0


def wait_for_room(config: WorkersConfig) -> None:
    """Return as soon as the cluster has room for one worker; until then the log says what is missing.

    A job whose workers need not run together begins with one, and the others join it when there is room for them.
    """
    needs = _needs(config)
    if not needs:
        return
    # A task as large as a worker finds out, and not the cluster's free resources: these are sums over nodes, none of
    # which need have room. It is never cancelled: cancelling one that just starts can end the driver (a failed check in
    # Ray 2.60). What is free is looked at before, as a task that has room and is starting holds some of it itself.
    free = ray.available_resources()
    own = {kind: amount for kind, amount in needs.items() if kind not in ("CPU", "GPU")}
    options = {"num_cpus": needs.get("CPU", 0.0), "num_gpus": needs.get("GPU", 0.0), "resources": own}
    probe = ray.remote(max_retries=-1, **options)(_nothing).remote()
    seconds = _SECONDS_TO_FIRST_LINE
    while not ray.wait([probe], timeout=seconds)[0]:
        if joined() or any(free.get(kind, 0.0) < amount for kind, amount in needs.items()):
            # Else it is a machine of our own, where nothing but the start of a process takes so long.
            logger.info("%s", waiting_line(needs, free, ray.cluster_resources()))
        seconds = _SECONDS_BETWEEN_LINES


@contextmanager
def reservation_logged(config: WorkersConfig) -> Iterator[None]:
    """Inside the block, the log says what is missing whenever workers that run together cannot be placed."""

    def look() -> float | None:
        if not reservations(["PENDING"]):
            return None
        needs = {kind: amount * config.workers for kind, amount in _needs(config).items()}
        logger.info("%s", waiting_line(needs, ray.available_resources(), ray.cluster_resources()))
        return _SECONDS_BETWEEN_LINES

    with repeated(look, _SECONDS_TO_FIRST_LINE):
        yield


def reservations(states: Iterable[str] = ("PENDING", "PREPARED", "CREATED", "RESCHEDULING")) -> set[str]:
    """The ids of this job's placement groups that are in one of these states."""
    job = ray.get_runtime_context().get_job_id()  # the id of a placement group ends with that of its job
    found = {name: group["state"] for name, group in placement_group_table().items()}
    return {name for name, state in found.items() if name.endswith(job) and state in states}


def release(identifiers: Iterable[str]) -> None:
    """Free these placement groups of this job; what still runs in them is ended.

    Ray frees them with their job. Ray Train does as soon as a trainer's workers have stopped, but not where the process
    that looks after these was ended itself, as it is when memory runs out.
    """
    for identifier in identifiers:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identifier))))


def _needs(config: WorkersConfig) -> dict[str, float]:
    """What one worker takes."""
    wanted = {"CPU": config.cpus_per_worker, "GPU": float(gpus_of(config)), **config.resources}
    return {kind: amount for kind, amount in wanted.items() if amount}


def waiting_line(needs: Mapping[str, float], free: Mapping[str, float], there: Mapping[str, float]) -> str:
    """What a worker needs and where that is: held by others, or not in the cluster."""
    missing = [kind for kind in needs if free.get(kind, 0.0) < needs[kind]]
    if not missing:
        wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in needs.items())
        return f"waiting for a worker with {wanted} to start"
    kind = missing[0]
    has, left = there.get(kind, 0.0), free.get(kind, 0.0)
    if has < needs[kind]:
        return f"waiting for {needs[kind]:g} {kind}, of which the cluster has {has:g}, until a node with it comes"
    return f"waiting for {needs[kind]:g} {kind}: of the cluster's {has:g}, {has - left:g} are held by others"


def _nothing() -> None:
    pass
