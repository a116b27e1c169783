"""What is learned: phi0 and the step sizes, in float32 whatever the base model's data type."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regrad.errors import TrainingError
from regrad.meta_init import MetaInit
from regrad.models.subspace import Subspace
from regrad.training.meta.config import InnerConfig
from regrad.training.meta.objective import MetaGradient, Point


class MetaParameters(nn.Module):
    """phi0 [P] and the raw step sizes: alpha is initial * raw, raw itself (absolute) or initial * exp(raw) (log).

    `raw` has one number a tensor (mode `tie`), one in all (`same`), one for each of the P numbers (`full`), or is
    not learned (`fix`).
    """

    def __init__(self, subspace: Subspace, inner: InnerConfig, seed: int, start: MetaInit | None = None) -> None:
        super().__init__()
        self._subspace, self._inner = subspace, inner
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

    def step_sizes(self, raw: Tensor | None = None) -> Tensor:
        """alpha, one a tensor [n_tensors] or, in mode `full`, one a number [P]."""
        raw = self.raw if raw is None else raw
        values = self._unit * (raw.exp() if self._log else raw)
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
            raise TrainingError("the MetaInit to start from has a step size for each number: use step_size_mode full")
        if self._log and bool((values <= 0).any()):
            raise TrainingError("the MetaInit to start from has step sizes below zero: use step_size_space linear")
        return values.log() if self._log else values.clone()
