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
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from regrad.errors import ModelError
from regrad.models.subspace import Subspace


class BatchedLora:
    """One model's projections of one subspace, waiting for the update of the next forward pass.

    Several subspaces may lie on one model, on the same projections too: each adds its own part. Raises `ModelError` if
    the model lacks a projection.
    """

    def __init__(self, model: nn.Module, subspace: Subspace) -> None:
        self.subspace = subspace
        self._modules = {name: _projection(model, name, *sizes) for name, *sizes in subspace.modules}
        self._current: dict[str, Tensor] | None = None
        self._scaled = False
        self._holders = 0
        self._handles: list[RemovableHandle] = []

    def hold(self) -> None:
        """Keep the hooks on the model until `release` was called as often: for those who apply updates again and again.

        A hook costs its projection a little in every pass, also where no update is applied, and putting it on costs
        more; so they are there while somebody holds them, or for as long as an update is applied.
        """
        self._holders += 1
        if not self._handles:
            self._handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]

    def release(self) -> None:
        """Take the hooks off the model if nobody else holds them."""
        self._holders -= 1
        if not self._holders:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    @contextmanager
    def applied(self, flat: Tensor) -> Iterator[None]:
        """Inside the block, the model's forward passes run with this update.

        `flat` is [P] for one update on all rows, or [U, P] for a batch of U * n rows in which each n
        consecutive rows share an update. Differentiable with respect to `flat`.
        """
        previous, self._current = self._current, self.subspace.unflatten(flat)
        self.hold()
        try:
            yield
        finally:
            self.release()
            self._current = previous

    @contextmanager
    def applied_scaled(self, tensors: dict[str, Tensor]) -> Iterator[None]:
        """As `applied`, with tensors by name in which each B has the subspace's scale in it already."""
        previous, self._current, self._scaled = self._current, tensors, True
        self.hold()
        try:
            yield
        finally:
            self.release()
            self._current, self._scaled = previous, False

    def _hook(self, name: str) -> Any:
        names = f"{name}.A", f"{name}.B"

        def add_update(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            current = self._current
            if current is None:
                return None
            a, b = current[names[0]], current[names[1]]
            if self._scaled and a.dim() == 2:
                return add_one(output, inputs[0], a, b)
            return add_lora(output, inputs[0], a, b, 1.0 if self._scaled else self.subspace.scaling)

        return add_update


def _projection(model: nn.Module, name: str, inputs: int, outputs: int) -> nn.Module:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear | Conv1D):
        found = f"there is a {type(module).__name__}" if module is not None else "there is none"
        raise ModelError(
            f"an update adapts the linear module {name}, but in this {type(model).__name__} {found}; it was made for "
            "another model"
        )
    # GPT-2's Conv1D is a linear module that keeps its weight as [in, out].
    rows, columns = module.weight.shape
    sizes = (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)
    if sizes != (inputs, outputs):
        raise ModelError(
            f"an update adapts {name} with {inputs} inputs and {outputs} outputs, but in this {type(model).__name__} "
            f"it has {sizes[0]} and {sizes[1]}; it was made for another model"
        )
    return module


def add_one(output_NTO: Tensor, x_NTD: Tensor, a_RD: Tensor, b_OR: Tensor) -> Tensor:
    """`output` + B A x with one update, in the fewest steps: for a single short row these are what it costs."""
    low = x_NTD.view(-1, x_NTD.shape[-1]).mm(a_RD.t())
    return torch.addmm(output_NTO.view(-1, b_OR.shape[0]), low, b_OR.t()).view(output_NTO.shape)


def add_lora(output_NTO: Tensor, x_NTD: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """`output` + scaling * B A x: A is [R, D] and B [O, R], or per update [U, R, D] and [U, O, R] with N = U * n.

    The scale is applied where there are only R numbers a token, and the sum is part of the second product.
    """
    a, b = a.to(x_NTD.dtype), b.to(x_NTD.dtype)
    if a.dim() == 2:
        low = F.linear(x_NTD, a).flatten(0, -2)
        low = low if scaling == 1 else low * scaling
        return torch.addmm(output_NTO.flatten(0, -2), low, b.t()).view(output_NTO.shape)
    updates = a.shape[0]
    low = torch.bmm(x_NTD.reshape(updates, -1, x_NTD.shape[-1]), a.mT)
    low = low if scaling == 1 else low * scaling
    return torch.baddbmm(output_NTO.reshape(updates, -1, b.shape[1]), low, b.mT).view(output_NTO.shape)
