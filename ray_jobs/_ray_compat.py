"""All that the jobs use of Ray's private modules, which any minor release may move: hence the upper pin of `ray`.

To raise the pin, check each name here against the new release, and look for the public one that its comment asks for.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import ray
from ray._private.runtime_env.packaging import _get_excludes, get_excludes_from_ignore_files
from ray.data import Dataset, TaskPoolStrategy
from ray.data._internal.logical.interfaces import LogicalPlan
from ray.data._internal.logical.operators import StreamingRepartition
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

# The file in which Ray Train lists the complete checkpoints of a run: how a driver that fits again after a failure
# knows whether there is a new one. The public `Result.from_path(run)` reads the same file and could replace this, but
# raises a bare `RuntimeError` as long as there is none, and opens every checkpoint's metrics.
CHECKPOINT_LIST: str = CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

_QUIET = logging.getLogger(f"{__name__}.quiet")
_QUIET.disabled = True


def allocator() -> dict[str, str]:
    """The environment of a process that is to allocate with jemalloc, which Ray brings for its own processes.

    Empty if Ray has none here, or the user preloads something. Ray names no public place for it.
    """
    library = Path(ray.__file__).parent / "core" / "libjemalloc.so"
    return {"LD_PRELOAD": str(library)} if library.exists() and "LD_PRELOAD" not in os.environ else {}


def silence_worker_logs() -> None:
    """Print nothing in the driver that the processes of the cluster say.

    `ray.init(log_to_driver=False)` is the public way, but keeps only the logs of workers back: errors that Ray
    publishes are printed all the same, beside the exception that tells of them. If that changes, this can go.
    """
    ray._private.worker._worker_logs_enabled = False


class TrainerWithoutCleaner(TorchTrainer):  # type: ignore[misc]
    """Ray Train's, without the actor that frees what a dead driver held.

    No public setting leaves it out: `RunConfig(callbacks=...)` only adds to the callbacks that there are by default.
    One that did would replace this class.
    """

    def _create_default_callbacks(self) -> list[Any]:
        found: list[Any] = super()._create_default_callbacks()
        return [item for item in found if not isinstance(item, PlacementGroupCleanerCallback)]


def cut_without_processors(rows: Dataset, size: int, tasks: int) -> Dataset:
    """Blocks of exactly `size` rows (the last is shorter), cut by so many tasks at a time that take no CPU.

    `Dataset.repartition(target_num_rows_per_block=size, strict=True)` is the public way, whose tasks take a CPU each,
    and no argument changes that: where actors of several jobs hold all CPUs, none of the jobs would ever end. If it
    takes `num_cpus`, as `map_batches` does, this can go.
    """
    cut = StreamingRepartition(
        target_num_rows_per_block=size,
        strict=True,
        ray_remote_args={"num_cpus": 0},
        compute=TaskPoolStrategy(size=tasks),
        input_dependencies=[rows._logical_plan.dag],
    )
    return Dataset._from_parent(rows, LogicalPlan(cut, rows.context))


def is_shipped(file: Path, directory: Path, excludes: list[str]) -> bool:
    """Whether a file of a working directory gets to the cluster: patterns and `.gitignore` files leave others out.

    Ray says publicly which files those are, but not in code: a job without its file would only fail on the cluster.
    """
    left_out = [_get_excludes(directory, excludes)]
    place = directory
    for part in file.relative_to(directory).parts:
        left_out += get_excludes_from_ignore_files(place, include_gitignore=True, logger=_QUIET)
        place = place / part
        if any(check(place) for check in left_out):
            return False
    return True
