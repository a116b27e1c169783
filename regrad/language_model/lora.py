"""Per-request LoRA: updates are inputs of a batch, never writes to the weights.

A forward hook on each adapted projection adds scaling * B A x, with the A and B of the row that x belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrad.language_model.subspace import Subspace


class BatchedLora:
    """The adapted projections of one model, waiting for the update of the next forward pass."""

    def __init__(self, model: nn.Module, subspace: Subspace) -> None:
        self.subspace = subspace
        self._current: dict[str, Tensor] | None = None
        self._handles = [
            model.get_submodule(name).register_forward_hook(self._hook(name)) for name, _, _ in subspace.modules
        ]

    @contextmanager
    def applied(self, flat: Tensor) -> Iterator[None]:
        """Inside the block, the model's forward passes run with this update.

        `flat` is [P] for one update on all rows, or [U, P] for a batch of U * n rows in which each n
        consecutive rows share an update. Differentiable with respect to `flat`.
        """
        previous, self._current = self._current, self.subspace.unflatten(flat)
        try:
            yield
        finally:
            self._current = previous

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def add_update(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._current is None:
                return None
            low_rank = lora_delta(inputs[0], self._current[f"{name}.A"], self._current[f"{name}.B"])
            return output + low_rank * self.subspace.scaling

        return add_update


def lora_delta(x_NTD: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """B A x for every row: A is [R, D] and B [O, R], or per update [U, R, D] and [U, O, R] with N = U * n."""
    a, b = a.to(x_NTD.dtype), b.to(x_NTD.dtype)
    if a.dim() == 2:
        return F.linear(F.linear(x_NTD, a), b)
    grouped = x_NTD.reshape(a.shape[0], -1, x_NTD.shape[-1])
    low = torch.bmm(grouped, a.transpose(1, 2))
    return torch.bmm(low, b.transpose(1, 2)).view(*x_NTD.shape[:-1], b.shape[1])
