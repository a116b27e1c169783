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
            a, b = self._current[f"{name}.A"], self._current[f"{name}.B"]
            return add_lora(output, inputs[0], a, b, self.subspace.scaling)

        return add_update


def add_lora(output_NTO: Tensor, x_NTD: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """`output` + scaling * B A x: A is [R, D] and B [O, R], or per update [U, R, D] and [U, O, R] with N = U * n.

    The scale is applied where there are only R numbers a token, and the sum is part of the second product.
    """
    a, b = a.to(x_NTD.dtype), b.to(x_NTD.dtype)
    if a.dim() == 2:
        low = F.linear(x_NTD, a).flatten(0, -2) * scaling
        return torch.addmm(output_NTO.flatten(0, -2), low, b.t()).view(output_NTO.shape)
    updates = a.shape[0]
    low = torch.bmm(x_NTD.reshape(updates, -1, x_NTD.shape[-1]), a.mT) * scaling
    return torch.baddbmm(output_NTO.reshape(updates, -1, b.shape[1]), low, b.mT).view(output_NTO.shape)
