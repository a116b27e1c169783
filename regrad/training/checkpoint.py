"""The state of a run, and its checkpoint on disk, from which the run continues as if nothing had happened.

A checkpoint is a directory: `state.safetensors` (parameters and optimiser moments), `checkpoint.json` (its card: what
is trained, on which base weights, the digest of the tensors, and the `TrainState`), and the directory of the product
that the run would have if it ended here (`meta_init/`, `adapter/`). The order of draws follows from seed and step, so
it needs no state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

from regrad.digests import file_digest
from regrad.errors import TrainingError
from regrad.storage import directory_writer

CARD = "checkpoint.json"
_TENSORS = "state.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class DevScore:
    """Scores of the dev items after `step` steps, by name."""

    step: int
    values: Mapping[str, float]

    def to_record(self) -> dict[str, float]:
        """Step and numbers in one dictionary."""
        return {"step": self.step, **self.values}


@dataclass
class TrainState:
    """The state of a run.

    `losses` has the mean loss of each step except those in `skipped`, in which something was not finite. `decided` is
    what was decided at the first step for all others, and `seconds` the time that one worker spent in steps.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    scores: list[DevScore] = field(default_factory=list)
    decided: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def skipped_in_a_row(self) -> int:
        """How many consecutive steps up to the latest were skipped."""
        count = 0
        while count < len(self.skipped) and self.skipped[-1 - count] == self.step - count:
            count += 1
        return count

    @property
    def latest_score(self) -> DevScore | None:
        """The score of the latest step, if it has one."""
        return self.scores[-1] if self.scores and self.scores[-1].step == self.step else None

    def notes(self, workers: int) -> dict[str, Any]:
        """What a product's card says of the run; `seconds` is the sum over all workers."""
        return {
            "steps": self.step,
            "skipped_steps": len(self.skipped),
            "losses": self.some_losses(),
            "seconds": round(workers * self.seconds, 3),
        }

    def some_losses(self, count: int = 500) -> list[float]:
        """About `count` of the losses, evenly spaced and rounded, for a card."""
        return [round(loss, 6) for loss in self.losses[:: max(1, len(self.losses) // count)]]


class Product(Protocol):
    """What a run makes: a MetaInit, an adapter."""

    def save(self, uri: Path, /) -> None:
        """Write the directory, whole or not at all."""


@dataclass(frozen=True)
class TrainCheckpoint:
    """The state of a run of one `kind` on the weights `base`, its tensors, and its product so far."""

    kind: str
    base: str
    state: TrainState
    tensors: Mapping[str, Tensor]
    product_name: str
    product: Product

    def save(self, folder: Path) -> None:
        """Write the directory, whole or not at all."""
        with directory_writer(folder, CARD) as staging:
            self.product.save(staging / self.product_name)
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, staging / _TENSORS)
            card = {"format": _FORMAT, "kind": self.kind, "base": self.base, "tensors": file_digest(staging / _TENSORS)}
            (staging / CARD).write_text(json.dumps({**card, "state": asdict(self.state)}))


def load_train_checkpoint(folder: Path, kind: str, base: str) -> tuple[TrainState, dict[str, Tensor]]:
    """State and tensors; raises `TrainingError` if damaged, of another kind or version, or of other base weights."""
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text())
        if card["format"] != _FORMAT or card["kind"] != kind:
            raise TrainingError(
                f"the checkpoint at {folder} is of {card['kind']} in format {card['format']}, not of {kind} in format "
                f"{_FORMAT}; start again with checkpoints.resume=false",
                code="checkpoint_of_another_kind",
                uri=str(folder),
                expected=kind,
                found=card["kind"],
            )
        if card["base"] != base:
            raise TrainingError(
                f"the checkpoint at {folder} belongs to base weights {card['base']:.16} and the model has {base:.16}; "
                "discard the run with checkpoints.resume=false",
                code="checkpoint_of_another_base",
                uri=str(folder),
            )
        if card["tensors"] != file_digest(folder / _TENSORS):
            raise ValueError(f"{_TENSORS} is not what was written")
        tensors = load_file(folder / _TENSORS)
        scores = [DevScore(**score) for score in card["state"].pop("scores")]
        state = TrainState(**card["state"], scores=scores)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainingError(
            f"the checkpoint at {folder} is damaged or of an earlier version: {error}; start again with "
            "checkpoints.resume=false",
            code="checkpoint_damaged",
            uri=str(folder),
        ) from error
    return state, tensors


_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def module_tensors(module: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """Copies of a module's parameters and their AdamW moments, on the CPU."""
    tensors = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        moments = optimizer.state.get(parameter, {})
        tensors |= {f"{name}.{moment}": moments[moment].detach().cpu().clone() for moment in _MOMENTS if moments}
    return tensors


def load_module_tensors(module: nn.Module, optimizer: AdamW, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `module_tensors` gave."""
    module.load_state_dict({name: tensors[name] for name in module.state_dict()})
    for name, parameter in module.named_parameters():
        if f"{name}.step" in tensors:
            moments = {moment: tensors[f"{name}.{moment}"].clone() for moment in _MOMENTS}
            # AdamW keeps the step count on the CPU, whatever the parameter's device and type.
            optimizer.state[parameter] = {
                moment: value if moment == "step" else value.to(parameter) for moment, value in moments.items()
            }


def module_step(
    module: nn.Module, optimizer: AdamW, gradient: Tensor, learning_rate: float, clip: float | None
) -> None:
    """One step of all parameters by their gradients in one vector, cut to the norm `clip` if there is one."""
    if clip is not None:
        gradient = gradient * (clip / gradient.norm().clamp_min(clip))
    parameters = list(module.parameters())
    parts = torch.split(gradient, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    optimizer.param_groups[0]["lr"] = learning_rate
    optimizer.step()
