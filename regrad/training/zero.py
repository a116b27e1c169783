"""What training engines need of DeepSpeed's ZeRO: its settings, and AdamW's moments in a form that any engine loads.

What is private to DeepSpeed is used here alone, and `deepspeed` is pinned below its next minor release for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_MOMENTS = ("exp_avg", "exp_avg_sq")


def zero_settings(stage: int | None, clip: float | None, **of_stage: Any) -> dict[str, Any]:
    """DeepSpeed's configuration for a step of gradients that are there: one batch, clipped, nothing printed."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip or 0.0,
        "zero_optimization": {"stage": stage, **of_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


class ZeroState:
    """The parameters of `module` and their moments inside a DeepSpeed engine, shared among workers or not."""

    # Only DeepSpeed knows which share of a moment belongs where, and it makes them at its first step: before anything
    # can be loaded, an engine has to take one.

    def __init__(self, engine: Any, module: nn.Module) -> None:
        self._wrapper, self._module = engine.optimizer, module

    def moments(self) -> dict[str, Tensor]:
        """Moments and numbers of steps by the parameters' names, whole and on the CPU; a collective.

        Empty before the first step.
        """
        found: dict[str, Tensor] = {}
        if not (steps := self._steps()):
            return found
        self._link_moments()
        for name, parameter in self._module.named_parameters():
            for moment in _MOMENTS:
                value = self._moment(parameter, moment).detach().float().cpu()
                found[f"{name}.{moment}"] = value.reshape(_whole_shape(parameter)).clone()
            found[f"{name}.step"] = torch.tensor(steps[0])
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set float32 parameters and, if `tensors` has some, what `moments` gave; a collective.

        Parameters that had no step have no moments, and get zeros.
        """
        from deepspeed.utils import safe_set_full_fp32_param

        counts = [float(value) for name, value in tensors.items() if name.endswith(".step")]
        if counts:
            self._link_moments()
        for name, parameter in self._module.named_parameters():
            if _is_fragmented(parameter):
                safe_set_full_fp32_param(parameter, tensors[name].to(parameter.device))
            for moment in _MOMENTS if counts else ():
                value = tensors.get(f"{name}.{moment}")
                value = torch.zeros(_whole_shape(parameter)) if value is None else value
                self._set_moment(parameter, moment, value.to(parameter.device))
        for values in self._inner().state.values() if counts else ():
            values["step"] = torch.full_like(torch.as_tensor(values["step"]), max(counts))

    def _link_moments(self) -> None:
        """At ZeRO 1 and 2 DeepSpeed links moments to parameters after the step of its first group, and never again."""
        # Private: the public `safe_get_full_optimizer_state` needs these links, and nothing public makes them.
        if hasattr(self._wrapper, "_lazy_init_hp_params_optimizer_state"):
            self._wrapper._hp_optimizer_states_linked = False
            self._wrapper._lazy_init_hp_params_optimizer_state()

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        fragmented = _is_fragmented(parameter)
        value: Tensor = (
            safe_get_full_optimizer_state(parameter, moment) if fragmented else self._inner().state[parameter][moment]
        )
        return value

    def _set_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        if _is_fragmented(parameter):
            safe_set_full_optimizer_state(parameter, value, moment)
        else:
            self._inner().state[parameter][moment].copy_(value)

    def _inner(self) -> Any:
        """The AdamW inside of DeepSpeed's wrapper."""
        return getattr(self._wrapper, "optimizer", self._wrapper)

    def _steps(self) -> list[float]:
        return [float(values["step"]) for values in self._inner().state.values() if "step" in values]


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of all shards together."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _is_fragmented(parameter: nn.Parameter) -> bool:
    # Private: what marks a parameter of which DeepSpeed keeps fragments; no public function asks for it. At ZeRO 1 and
    # 2 the mark is None on a worker that has none, and that has to take part all the same where it is made whole.
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")
