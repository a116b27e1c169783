"""Plain PyTorch: one process, or DistributedDataParallel over all."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regrad.config import OptimizerConfig
from regrad.meta.engines.base import Engine, make_optimizer
from regrad.meta.objective import MetaGradient
from regrad.meta.parameters import MetaParameters

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


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
        state = {name: value.detach().cpu().clone() for name, value in self.parameters.state_dict().items()}
        for name, parameter in self.parameters.named_parameters():
            moments = self._optimizer.state.get(parameter, {})
            state |= {f"{name}.{moment}": moments[moment].detach().cpu().clone() for moment in _MOMENTS if moments}
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Engine`."""
        self.parameters.load_state_dict({name: state[name] for name in self.parameters.state_dict()})
        for name, parameter in self.parameters.named_parameters():
            if f"{name}.step" in state:
                moments = {moment: state[f"{name}.{moment}"].clone() for moment in _MOMENTS}
                self._optimizer.state[parameter] = {
                    moment: value if moment == "step" else value.to(parameter) for moment, value in moments.items()
                }
