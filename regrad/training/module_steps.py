"""AdamW steps of a module by gradients that were computed on several workers: by every worker, or shared by DeepSpeed.

Gradients come from wherever they are computed (an ordinary backward pass, or sums over chunks) and are averaged here.
With DeepSpeed's ZeRO (stages 1 and 2) moments, and at 2 gradients, are kept in shares, one a worker.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regrad.training.checkpoint import load_module_tensors, module_tensors
from regrad.training.workers import Workers
from regrad.training.zero import ZeroState, zero_settings

ZeroStage = Literal[1, 2]


@dataclass(frozen=True)
class AdamWSettings:
    """What all parameters share; `clip` is the most that the norm of the whole gradient may be."""

    betas: tuple[float, float]
    weight_decay: float
    clip: float | None
    zero_stage: ZeroStage | None = None


class ModuleSteps:
    """The parameters of `module`, each group at a peak rate of its own; every worker takes the same steps."""

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[tuple[Iterable[nn.Parameter], float]],
        settings: AdamWSettings,
        workers: Workers,
    ) -> None:
        self.module, self.settings, self.workers = module, settings, workers
        # `base_lr` keeps the peak rate: a step sets `lr` to its share of it.
        made: list[dict[str, Any]] = [{"params": list(some), "lr": lr, "base_lr": lr} for some, lr in groups]
        self._optimizer = torch.optim.AdamW(made, betas=settings.betas, weight_decay=settings.weight_decay)

    def step(self, factor: float) -> bool:
        """A step by the mean over workers of their parameters' `grad`, at `factor` times the peak rates.

        False, and no step, if one is not finite on any worker. A collective, which every worker has to call.
        """
        parameters = [parameter for parameter in self.module.parameters() if parameter.grad is not None]
        for parameter in parameters:
            parameter.grad = self.workers.mean(parameter.grad)  # type: ignore[arg-type]
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.clip or float("inf"))
        if not self.everywhere(torch.isfinite(norm)):
            return False
        self._rate(self._optimizer, factor)
        self._optimizer.step()
        return True

    def everywhere(self, here: Tensor) -> bool:
        """Whether it is true on all workers; a collective."""
        return bool(self.workers.mean(here.float()) == 1)

    def differentiate(self, loss: Tensor, beside: Sequence[Tensor] = ()) -> None:
        """Put the gradients of a loss into `grad`: of all parameters, and of the leaves `beside` that it depends on."""
        self.forget_gradients()
        loss.backward()  # type: ignore[no-untyped-call]

    def forget_gradients(self) -> None:
        """No parameter has a gradient."""
        for parameter in self.module.parameters():
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and moments, whole and on the CPU; a collective."""
        return module_tensors(self.module, self._optimizer)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; a collective."""
        load_module_tensors(self.module, self._optimizer, tensors)

    @staticmethod
    def _rate(optimizer: Any, factor: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor


class _Surrogate(nn.Module):
    """What DeepSpeed sees: the sum of each parameter times its gradient, whose ordinary gradient is that gradient."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, gradients: Sequence[Tensor]) -> Tensor:
        pairs = zip(self.module.parameters(), gradients, strict=True)
        return torch.stack([(parameter * gradient).sum() for parameter, gradient in pairs]).sum()


class ZeroSteps(ModuleSteps):
    """The same steps with DeepSpeed; a parameter without a gradient counts as one whose gradient is zero."""

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[tuple[Iterable[nn.Parameter], float]],
        settings: AdamWSettings,
        workers: Workers,
    ) -> None:
        super().__init__(module, groups, settings, workers)
        # As `models.sharded` sets it up, of which what all training shares knows nothing.
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if next(module.parameters()).is_cuda else "cpu")
        import deepspeed

        # DeepSpeed would compile a shared-memory all-reduce at the first start (a minute, and a compiler): gloo does.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._engine, *_ = deepspeed.initialize(
            model=_Surrogate(module),
            optimizer=self._optimizer,
            dist_init_required=False,
            config=zero_settings(settings.zero_stage, settings.clip),
        )
        self._state = ZeroState(self._engine, module)

    def differentiate(self, loss: Tensor, beside: Sequence[Tensor] = ()) -> None:
        """See `ModuleSteps`."""
        self.forget_gradients()
        # DeepSpeed takes up what a backward pass accumulates at a parameter, and refuses the surrogate's as a second
        # one. What is asked for here is not accumulated.
        leaves = [leaf for leaf in (*self.module.parameters(), *beside) if leaf.requires_grad]
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient

    def step(self, factor: float) -> bool:
        """See `ModuleSteps`."""
        found = [self._gradient_of(parameter) for parameter in self.module.parameters()]
        # DeepSpeed has no way back once it has averaged: what is not finite is found on the workers before.
        finite = torch.stack([torch.isfinite(gradient).all() for gradient in found]).all()
        if not self.everywhere(finite):
            return False
        self.forget_gradients()
        self._rate(self._engine.optimizer, factor)
        self._engine.backward(self._engine(found))
        self._engine.step()
        return True

    def tensors(self) -> dict[str, Tensor]:
        """See `ModuleSteps`."""
        state = {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}
        return state | self._state.moments()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `ModuleSteps`."""
        if any(name.endswith(".step") for name in tensors):  # moments, which DeepSpeed has to make: a step of nothing
            self.forget_gradients()
            self.step(0.0)
        self.module.load_state_dict({name: tensors[name] for name in self.module.state_dict()})
        self._state.load(tensors)

    def _gradient_of(self, parameter: nn.Parameter) -> Tensor:
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()


def make_steps(
    module: nn.Module,
    groups: Sequence[tuple[Iterable[nn.Parameter], float]],
    settings: AdamWSettings,
    workers: Workers,
) -> ModuleSteps:
    """DeepSpeed at the configured stage, or plain PyTorch; for DeepSpeed torch.distributed must be initialised."""
    kind = ModuleSteps if settings.zero_stage is None else ZeroSteps
    return kind(module, groups, settings, workers)
