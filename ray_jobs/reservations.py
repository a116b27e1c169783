"""This job's placement groups, which reserve room for workers that run together.

Ray frees a reservation when its job ends. Ray Train frees it earlier, as soon as a trainer's workers have stopped, but
not where the process that looks after these was ended itself, as it is when memory runs out.
"""

from __future__ import annotations

from collections.abc import Iterable

import ray
from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup, remove_placement_group

_GONE = "REMOVED"


def reservations(states: Iterable[str] = ()) -> set[str]:
    """The ids of this job's reservations that are in one of these states, or of all that are there."""
    job = ray.get_runtime_context().get_job_id()  # the id of a reservation ends with that of its job
    found = [group for group in placement_group_table().values() if group["placement_group_id"].endswith(job)]
    wanted = set(states)
    return {
        group["placement_group_id"]
        for group in found
        if group["state"] != _GONE and (not wanted or group["state"] in wanted)
    }


def release(identifiers: Iterable[str]) -> None:
    """Free these reservations; what still runs in them is ended."""
    for identifier in identifiers:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identifier))))
