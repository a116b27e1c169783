"""What is learned (phi0 and the step sizes), and how the workers' meta-gradients become one step of all workers.

The parameters are float32 whatever the base model's data type. `PlainEngine` is plain PyTorch, in one process or with
DDP; `deepspeed.py` has the other engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regrad.errors import TrainingError
from regrad.meta_init import MetaInit
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace
from regrad.training.checkpoint import load_module_tensors, module_tensors
from regrad.training.meta.config import InnerConfig, OptimizerConfig
from regrad.training.meta.objective import MetaGradient, Point
from regrad.training.workers import total


class MetaParameters(nn.Module):
    """phi0 [P] and the raw step sizes: alpha is initial * raw, raw itself (absolute) or initial * exp(raw) (log).

    `raw` has one number per tensor (mode `tie`), one for all (`same`), one for each of the P numbers (`full`), or is
    not learned (`fix`).
    """

    def __init__(self, subspace: Subspace, inner: InnerConfig, seed: int, start: MetaInit | None = None) -> None:
        super().__init__()
        self._subspace = subspace
        self._inner = inner
        self.phi0 = nn.Parameter(subspace.initial(seed) if start is None else start.phi0.detach().clone().float())
        raw = self._raw(start)
        if inner.step_size_mode == "fix":
            self.register_buffer("raw", raw)
        else:
            self.raw = nn.Parameter(raw)

    @property
    def numbers(self) -> int:
        """How many step sizes there are."""
        counts = {"same": 1, "full": self._subspace.size}
        return counts.get(self._inner.step_size_mode, len(self._subspace.shapes))

    def step_sizes(self) -> Tensor:
        """alpha, one per tensor [n_tensors] or, in mode `full`, one per number [P]."""
        values = self._unit * (self.raw.exp() if self._log else self.raw)
        return values.expand(len(self._subspace.shapes)) if self._inner.step_size_mode == "same" else values

    def point(self) -> Point:
        """phi0 and alpha [P] as they are now, without a graph."""
        return Point(self.phi0.detach(), self._subspace.per_tensor(self.step_sizes().detach()))

    def forward(self, gradient: MetaGradient) -> Tensor:
        """A scalar whose ordinary gradient is the meta-gradient: sum(p * stop_gradient(G_p)), over phi0 and alpha."""
        # DDP and DeepSpeed average and step on what an ordinary backward pass gives; the meta-gradient comes from
        # elsewhere, so it enters as the constant factor of a linear function.
        surrogate = (self.phi0 * gradient.phi0).sum()
        if isinstance(self.raw, nn.Parameter):
            surrogate = surrogate + (self._subspace.per_tensor(self.step_sizes()) * gradient.alpha).sum()
        return surrogate

    @property
    def _unit(self) -> float:
        """What alpha is measured in. It decides how far a step of AdamW, which knows no scale, moves alpha."""
        return 1.0 if self._inner.step_size_space == "absolute" else self._inner.initial_step_size

    @property
    def _log(self) -> bool:
        return self._inner.step_size_space == "log"

    def _raw(self, start: MetaInit | None) -> Tensor:
        if start is None:
            values = torch.full((self.numbers,), self._inner.initial_step_size / self._unit)
            return values.log() if self._log else values
        values = start.step_sizes.detach().float() / self._unit
        if self.numbers == self._subspace.size:
            values = self._subspace.per_tensor(values)
        elif self.numbers == 1:
            values = values.mean().reshape(1)
        elif values.numel() != self.numbers:
            raise TrainingError(
                "the MetaInit to start from has a step size for each number; set inner.step_size_mode=full",
                code="start_from_mode",
                expected="full",
            )
        if self._log and bool((values <= 0).any()):
            raise TrainingError(
                "the MetaInit to start from has step sizes that are not above zero; set inner.step_size_space=linear",
                code="start_from_space",
                expected="linear",
            )
        return values.log() if self._log else values.clone()


def make_optimizer(parameters: MetaParameters, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW: phi0 at `lr` and the raw step sizes at `step_size_lr`, each with a weight decay of its own."""
    rates = [(parameters.phi0, config.lr, config.weight_decay)]
    if isinstance(parameters.raw, nn.Parameter):
        rates.append((parameters.raw, config.step_size_lr or config.lr, config.step_size_weight_decay))
    # `base_lr` keeps the peak rate: a step sets `lr` to its share of it.
    groups: list[dict[str, Any]] = [
        {"params": [parameter], "lr": lr, "base_lr": lr, "weight_decay": decay} for parameter, lr, decay in rates
    ]
    return torch.optim.AdamW(groups, betas=config.betas)


class OptimizerEngine(ABC):
    """Averages gradients over workers, clips, and steps the optimiser; keeps and restores its state."""

    layer_wise = False
    """Whether the base weights are sharded and whole only while their layer runs: not in a second backward pass."""

    def __init__(self, parameters: MetaParameters, config: OptimizerConfig) -> None:
        self.parameters, self.config = parameters, config

    @abstractmethod
    def apply(self, gradient: MetaGradient, factor: float) -> None:
        """One optimiser step with the mean of all workers' gradients, at `factor` times the peak learning rates."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Parameters and optimiser moments, whole, on the CPU; a collective with the same result on all workers."""

    @abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave; a collective."""

    def point(self) -> Point:
        """phi0 and alpha, whole."""
        return self.parameters.point()

    def step_sizes(self) -> Tensor:
        """alpha as a MetaInit stores it, on the CPU."""
        return self.parameters.step_sizes().detach().float().cpu()

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all workers."""
        return total(values, self.parameters.phi0.device)


class PlainEngine(OptimizerEngine):
    """AdamW on every worker, gradients averaged by DDP."""

    def __init__(self, parameters: MetaParameters, config: OptimizerConfig) -> None:
        super().__init__(parameters, config)
        self._optimizer = make_optimizer(parameters, config)
        shared = dist.is_initialized() and dist.get_world_size() > 1
        self._module: nn.Module = DistributedDataParallel(parameters) if shared else parameters

    def apply(self, gradient: MetaGradient, factor: float) -> None:
        """See `OptimizerEngine`."""
        self._optimizer.zero_grad()
        self._module(gradient).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.parameters(), self.config.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """See `OptimizerEngine`."""
        return module_tensors(self.parameters, self._optimizer)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `OptimizerEngine`."""
        load_module_tensors(self.parameters, self._optimizer, state)


def make_engine(lm: LanguageModel, parameters: MetaParameters, config: OptimizerConfig) -> OptimizerEngine:
    """DeepSpeed at the configured ZeRO stage, or plain PyTorch; torch.distributed must be initialised for DeepSpeed."""
    if config.zero_stage is None:
        return PlainEngine(parameters, config)
    from regrad.training.meta.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(lm, parameters, config)
