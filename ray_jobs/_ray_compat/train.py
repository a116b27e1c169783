"""Of Ray Train: its trainer without an actor of its own, and the file in which it lists its checkpoints."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

# The file in which Ray Train lists the complete checkpoints of a run: how a driver that fits again after a failure
# knows whether there is a new one. The public `Result.from_path(run)` reads the same file and could replace this, but
# raises a bare `RuntimeError` as long as there is none, and opens every checkpoint's metrics.
CHECKPOINT_LIST: str = CHECKPOINT_MANAGER_SNAPSHOT_FILENAME


class TrainerWithoutCleaner(TorchTrainer):  # type: ignore[misc]
    """Ray Train's, without the actor that frees what a dead driver held.

    No public setting leaves it out: `RunConfig(callbacks=...)` only adds to the callbacks that there are by default.
    One that did would replace this class.
    """

    def _create_default_callbacks(self) -> list[Any]:
        found: list[Any] = super()._create_default_callbacks()
        return [item for item in found if not isinstance(item, PlacementGroupCleanerCallback)]
