"""DeepSpeed: ZeRO over the learned parameters and their moments; at stage 3 also over the frozen base model.

What is private to DeepSpeed is used here and in `training/module_steps.py` alone, and `deepspeed` is pinned below its
next minor release for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regrad.models.loading import LanguageModel
from regrad.models.sharded import deepspeed_on
from regrad.training.meta.config import OptimizerConfig
from regrad.training.meta.objective import MetaGradient, Point
from regrad.training.meta.optim import MetaParameters, OptimizerEngine, make_optimizer

_MOMENTS = ("exp_avg", "exp_avg_sq")


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
            config=_deepspeed_config(config),
        )

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
        self._link_moments()
        for name, parameter in self.parameters.named_parameters():
            for moment in _MOMENTS:
                value = self._moment(parameter, moment)
                if value is not None:
                    state[f"{name}.{moment}"] = value.detach().float().cpu().reshape(parameter_shape(parameter)).clone()
            if self._steps():
                state[f"{name}.step"] = torch.tensor(float(self._steps()[0]))
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `OptimizerEngine`."""
        if any(name.endswith(".step") for name in state):
            self._make_moments()
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self.parameters.named_parameters():
            if self._is_fragmented(parameter):
                safe_set_full_fp32_param(parameter, state[name].to(parameter.device))
            if not self.layer_wise:
                parameter.data.copy_(state[name])
            if f"{name}.step" in state:
                for moment in _MOMENTS:
                    self._set_moment(parameter, moment, state[f"{name}.{moment}"].to(parameter.device))
                for values in self._inner().state.values():
                    values["step"] = torch.full_like(torch.as_tensor(values["step"]), float(state[f"{name}.step"]))

    def _make_moments(self) -> None:
        """The optimiser makes its moments at its first step: a step with no gradient and no learning rate."""
        # Only DeepSpeed knows which shard of a moment belongs where, so it has to make them before they can be filled.
        point = self.point()
        nothing = torch.zeros((), device=point.phi0.device)
        zero = MetaGradient(nothing, nothing, torch.zeros_like(point.phi0), torch.zeros_like(point.alpha))
        self.apply(zero, 0.0)
        self._link_moments()

    def _link_moments(self) -> None:
        """At ZeRO 1 and 2 DeepSpeed links moments to parameters after the step of its first group, and never again."""
        wrapper = self._engine.optimizer
        # Private: the public `safe_get_full_optimizer_state` needs these links, and nothing public makes them.
        if self._steps() and hasattr(wrapper, "_lazy_init_hp_params_optimizer_state"):
            wrapper._hp_optimizer_states_linked = False
            wrapper._lazy_init_hp_params_optimizer_state()

    def _is_fragmented(self, parameter: nn.Parameter) -> bool:
        # Private: what marks a parameter of which DeepSpeed keeps fragments; no public function asks for it.
        return hasattr(parameter, "ds_id") or getattr(parameter, "_hp_mapping", None) is not None

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor | None:
        if not self._steps():
            return None
        if self._is_fragmented(parameter):
            from deepspeed.utils import safe_get_full_optimizer_state

            value: Tensor = safe_get_full_optimizer_state(parameter, moment)
            return value
        plain: Tensor = self._inner().state[parameter][moment]
        return plain

    def _set_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        if self._is_fragmented(parameter):
            from deepspeed.utils import safe_set_full_optimizer_state

            safe_set_full_optimizer_state(parameter, value, moment)
        else:
            self._inner().state[parameter][moment].copy_(value)

    def _inner(self) -> Any:
        """The AdamW inside of DeepSpeed's wrapper."""
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    def _steps(self) -> list[float]:
        return [float(values["step"]) for values in self._inner().state.values() if "step" in values]

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


def parameter_shape(parameter: nn.Parameter) -> torch.Size:
    """The whole shape of a parameter that may be sharded."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _deepspeed_config(config: OptimizerConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 3:
        zero |= {"stage3_param_persistence_threshold": 10_000, "stage3_prefetch_bucket_size": 0}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
