"""What the loop asks of an engine, and what all engines share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from regrad.config import OptimizerConfig
from regrad.meta.objective import MetaGradient, Point
from regrad.meta.parameters import MetaParameters


def make_optimizer(parameters: MetaParameters, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW: phi0 at `lr`, the raw step sizes at `step_size_lr` and without weight decay."""
    groups: list[dict[str, Any]] = [_group(parameters.phi0, config.lr, config.weight_decay)]
    if isinstance(parameters.raw, nn.Parameter):
        groups.append(_group(parameters.raw, config.step_size_lr or config.lr, 0.0))
    return torch.optim.AdamW(groups, betas=config.betas)


def _group(parameter: nn.Parameter, lr: float, weight_decay: float) -> dict[str, Any]:
    return {"params": [parameter], "lr": lr, "base_lr": lr, "weight_decay": weight_decay}


class Engine(ABC):
    """Averages gradients over workers, clips, and steps the optimiser; keeps and restores its state."""

    layer_wise = False
    """Whether the base's weights are sharded, and whole only while their layer runs: not in a second backward pass."""

    def __init__(self, parameters: MetaParameters, config: OptimizerConfig) -> None:
        self.parameters, self.config = parameters, config

    @abstractmethod
    def apply(self, gradient: MetaGradient, factor: float) -> None:
        """One optimiser step with the mean of all workers' gradients, at `factor` times the peak learning rates."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Parameters and optimiser moments, whole, on the CPU. Every worker has to call it; the result is the same."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave. Every worker has to call it."""

    def point(self) -> Point:
        """phi0 and alpha, whole."""
        return self.parameters.point()

    def step_sizes(self) -> Tensor:
        """alpha as the MetaInit keeps it, on the CPU."""
        return self.parameters.step_sizes().detach().float().cpu()

    def agree(self, flag: bool) -> bool:
        """Whether the flag is true on every worker."""
        return self.total([0.0 if flag else 1.0])[0] == 0.0

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all workers."""
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.parameters.phi0.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor]
