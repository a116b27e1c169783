"""DeepSpeed: ZeRO over the learned parameters and their moments; at stage 3 also over the frozen base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from regrad.models.loading import LanguageModel
from regrad.models.sharded import deepspeed_on
from regrad.training.meta.config import OptimizerConfig
from regrad.training.meta.objective import MetaGradient, Point
from regrad.training.meta.optim import MetaParameters, OptimizerEngine, make_optimizer
from regrad.training.zero import ZeroState, zero_settings

_OF_STAGE_3 = {"stage3_param_persistence_threshold": 10_000, "stage3_prefetch_bucket_size": 0}


class _Trained(nn.Module):
    """What DeepSpeed sees at stage 3: the learned parameters and, to be sharded, the frozen base."""

    def __init__(self, parameters: MetaParameters, base: nn.Module) -> None:
        super().__init__()
        self.parameters_, self.base = parameters, base

    def forward(self, gradient: MetaGradient) -> Tensor:
        """The learned parameters' surrogate loss."""
        surrogate: Tensor = self.parameters_(gradient)
        return surrogate


class DeepSpeedEngine(OptimizerEngine):
    """`engine.backward` gets the surrogate, whose ordinary gradient is the meta-gradient that was computed before."""

    def __init__(self, lm: LanguageModel, parameters: MetaParameters, config: OptimizerConfig) -> None:
        super().__init__(parameters, config)
        deepspeed = deepspeed_on(parameters.phi0.device)
        self._deepspeed = deepspeed
        for handle in lm.gathering:  # from now on the engine makes a module's weights whole
            handle.remove()
        self.layer_wise = config.zero_stage == 3
        optimizer = make_optimizer(parameters, config)
        self._engine, *_ = deepspeed.initialize(
            model=_Trained(parameters, lm.model) if self.layer_wise else parameters,
            optimizer=optimizer,
            dist_init_required=False,
            config=zero_settings(config.zero_stage, config.clip, **(_OF_STAGE_3 if self.layer_wise else {})),
        )
        self._state = ZeroState(self._engine, parameters)

    def apply(self, gradient: MetaGradient, factor: float) -> None:
        """See `OptimizerEngine`."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self._engine.backward(self._engine(gradient))
        self._engine.step()

    def point(self) -> Point:
        """See `OptimizerEngine`."""
        with self._whole():
            point = self.parameters.point()
            return Point(point.phi0.clone(), point.alpha.clone()) if self.layer_wise else point

    def step_sizes(self) -> Tensor:
        """See `OptimizerEngine`."""
        with self._whole():
            return self.parameters.step_sizes().detach().float().cpu().clone()

    def state(self) -> dict[str, Tensor]:
        """See `OptimizerEngine`."""
        with self._whole():
            state = {name: value.detach().cpu().clone() for name, value in self.parameters.state_dict().items()}
        return state | self._state.moments()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `OptimizerEngine`."""
        if any(name.endswith(".step") for name in state):
            self._make_moments()
        self._state.load(state)
        for name, parameter in self.parameters.named_parameters() if not self.layer_wise else ():
            parameter.data.copy_(state[name])

    def _make_moments(self) -> None:
        """The optimiser makes its moments at its first step: a step with no gradient and no learning rate."""
        point = self.point()
        nothing = torch.zeros((), device=point.phi0.device)
        zero = MetaGradient(nothing, nothing, torch.zeros_like(point.phi0), torch.zeros_like(point.alpha))
        self.apply(zero, 0.0)

    # Gathering is collective, and what was gathered is freed at the block's end: all workers have to enter together,
    # and what leaves the block has to be a copy.
    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Inside the block the learned parameters are not sharded."""
        if not self.layer_wise:
            yield
            return
        with self._deepspeed.zero.GatheredParameters(list(self.parameters.parameters())):
            yield
