"""Where a run stands, and its checkpoint on disk: complete enough that the loss curve goes on as if nothing happened.

A checkpoint is a directory: `meta_init/` (usable by itself), `state.safetensors` (parameters and optimiser moments)
and `state.json` (step, losses, dev scores). The order of tasks is a function of seed and step and needs no state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from regrad.errors import MetaInitError, TrainingError
from regrad.meta_init import MetaInit, read_card
from regrad.training.meta.config import StrategyName

META_INIT = "meta_init"
_STATE, _TENSORS = "state.json", "state.safetensors"


@dataclass(frozen=True)
class DevScore:
    """Exact match and F1 on the dev tasks, from 0 to 1."""

    step: int
    exact_match: float
    f1: float
    questions: int


@dataclass
class TrainState:
    """Steps done, the mean loss of each, steps that were skipped, dev scores, and the strategy that was chosen."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    dev: list[DevScore] = field(default_factory=list)
    strategy: StrategyName = "auto"

    @property
    def skipped_in_a_row(self) -> int:
        """How many of the last steps were skipped, one after the other."""
        count = 0
        while count < len(self.skipped) and self.skipped[-1 - count] == self.step - count:
            count += 1
        return count

    @property
    def latest_dev(self) -> DevScore | None:
        """The dev score of the present step, if it has one."""
        return self.dev[-1] if self.dev and self.dev[-1].step == self.step else None


def save_checkpoint(folder: Path, state: TrainState, tensors: Mapping[str, Tensor], meta_init: MetaInit) -> None:
    """Fill a directory of which the caller makes sure that it is seen whole or not at all."""
    meta_init.save(folder / META_INIT)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _TENSORS)
    (folder / _STATE).write_text(json.dumps(asdict(state)))


def load_checkpoint(folder: Path, base_identity: str | None = None) -> tuple[TrainState, dict[str, Tensor]]:
    """The inverse; raises `TrainingError` if the checkpoint is damaged, or was made with other base weights."""
    try:
        data: dict[str, Any] = json.loads((folder / _STATE).read_text())
        dev = [DevScore(**score) for score in data.pop("dev")]
        state, tensors = TrainState(**data, dev=dev), load_file(folder / _TENSORS)
        begun_with = read_card(folder / META_INIT)["base_identity"]
    except (MetaInitError, OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainingError(
            f"the checkpoint at {folder} is damaged: {error}; start again with resume: false"
        ) from error
    if base_identity not in (None, begun_with):
        raise TrainingError("the run was begun with other base weights; discard it with checkpoints.resume=false")
    return state, tensors
