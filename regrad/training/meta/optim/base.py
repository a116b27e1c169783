"""From a meta-gradient to one optimizer step of all workers; the engine of a single process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regrad.training.checkpoint import load_module_tensors, module_tensors
from regrad.training.meta.config import OptimizerConfig
from regrad.training.meta.objective import MetaGradient, Point
from regrad.training.meta.parameters import MetaParameters
from regrad.training.workers import total


def make_optimizer(parameters: MetaParameters, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW: phi0 at `lr` and the raw step sizes at `step_size_lr`, each with a weight decay of its own."""
    groups: list[dict[str, Any]] = [_group(parameters.phi0, config.lr, config.weight_decay)]
    if isinstance(parameters.raw, nn.Parameter):
        groups.append(_group(parameters.raw, config.step_size_lr or config.lr, config.step_size_weight_decay))
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
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave. Every worker has to call it."""

    def point(self) -> Point:
        """phi0 and alpha, whole."""
        return self.parameters.point()

    def step_sizes(self) -> Tensor:
        """alpha as the MetaInit keeps it, on the CPU."""
        return self.parameters.step_sizes().detach().float().cpu()

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all workers."""
        return total(values, self.parameters.phi0.device)


class PlainEngine(Engine):
    """AdamW on every worker, gradients averaged by DDP."""

    def __init__(self, parameters: MetaParameters, config: OptimizerConfig) -> None:
        super().__init__(parameters, config)
        self._optimizer = make_optimizer(parameters, config)
        shared = dist.is_initialized() and dist.get_world_size() > 1
        self._module: nn.Module = DistributedDataParallel(parameters) if shared else parameters

    def apply(self, gradient: MetaGradient, factor: float) -> None:
        """See `Engine`."""
        self._optimizer.zero_grad()
        self._module(gradient).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.parameters(), self.config.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """See `Engine`."""
        return module_tensors(self.parameters, self._optimizer)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        load_module_tensors(self.parameters, self._optimizer, state)
