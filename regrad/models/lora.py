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

    One model can have several subspaces, also on the same projections: each adds its own part. Raises `ModelError` if
    the model lacks a projection.
    """

    def __init__(self, model: nn.Module, subspace: Subspace) -> None:
        self.subspace = subspace
        self._modules = {name: _projection(model, name, *sizes) for name, *sizes in subspace.modules}
        self._current: dict[str, Tensor] | None = None
        self._untouched_NT: Tensor | None = None
        self._scaled = False
        self._holders = 0
        self._handles: list[RemovableHandle] = []

    def hold(self) -> None:
        """Keep the hooks on the model until `release` was called as often, for callers that apply many updates.

        A hook costs its projection a little in every pass, even without an update, and registering it costs more; so
        the hooks are there while a caller holds them, and else for as long as an update is applied.
        """
        self._holders += 1
        if not self._handles:
            self._handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]

    def release(self) -> None:
        """Take the hooks off the model if no other caller holds them."""
        self._holders -= 1
        if not self._holders:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    @contextmanager
    def applied(self, flat: Tensor, tokens_NT: Tensor | None = None) -> Iterator[None]:
        """Inside the block, the model's forward passes run with this update.

        `flat` is [P], one update for all rows, or [U, P] for a batch of U * n rows, where each n consecutive rows share
        an update. It acts on all tokens, or on those that `tokens_NT` (bool) says. Differentiable with respect to
        `flat`, twice.
        """
        untouched_NT = None if tokens_NT is None else ~tokens_NT
        with self._in_force(self.subspace.unflatten(flat), untouched_NT, scaled=False):
            yield

    @contextmanager
    def applied_scaled(self, tensors: dict[str, Tensor]) -> Iterator[None]:
        """As `applied`, with tensors by name whose B is already multiplied by the subspace's scale."""
        with self._in_force(tensors, None, scaled=True):
            yield

    @contextmanager
    def _in_force(self, tensors: dict[str, Tensor], untouched_NT: Tensor | None, scaled: bool) -> Iterator[None]:
        previous = self._current, self._untouched_NT, self._scaled
        self._current, self._untouched_NT, self._scaled = tensors, untouched_NT, scaled
        self.hold()
        try:
            yield
        finally:
            self.release()
            self._current, self._untouched_NT, self._scaled = previous

    def _hook(self, name: str) -> Any:
        name_a = f"{name}.A"
        name_b = f"{name}.B"

        def add_update(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._current is None:
                return None
            a = self._current[name_a]
            b = self._current[name_b]
            if self._scaled and a.dim() == 2:
                return add_one(output, inputs[0], a, b)
            scaling = 1.0 if self._scaled else self.subspace.scaling
            return add_lora(output, inputs[0], a, b, scaling, self._untouched_NT)

        return add_update


def _projection(model: nn.Module, name: str, inputs: int, outputs: int) -> nn.Module:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear | Conv1D):
        found = None if module is None else type(module).__name__
        raise ModelError(
            f"an update adapts the linear module {name}, but this {type(model).__name__} has "
            f"{f'a {found} there' if found else 'no such module'}; the update was made for another model",
            code="not_linear",
            module=name,
            found=found,
        )
    # GPT-2's Conv1D is a linear module that keeps its weight as [in, out].
    rows, columns = module.weight.shape
    sizes = (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)
    if sizes != (inputs, outputs):
        raise ModelError(
            f"an update adapts {name} with {inputs} inputs and {outputs} outputs, but in this {type(model).__name__} "
            f"it has {sizes[0]} and {sizes[1]}; the update was made for another model",
            code="wrong_size",
            module=name,
            expected=[inputs, outputs],
            found=list(sizes),
        )
    return module


def add_one(output_NTO: Tensor, x_NTD: Tensor, a_RD: Tensor, b_OR: Tensor) -> Tensor:
    """`output` + B A x with one update, in as few kernels as possible: a single short row costs what these cost."""
    low = x_NTD.view(-1, x_NTD.shape[-1]).mm(a_RD.t())
    return torch.addmm(output_NTO.view(-1, b_OR.shape[0]), low, b_OR.t()).view(output_NTO.shape)


def add_lora(
    output_NTO: Tensor, x_NTD: Tensor, a: Tensor, b: Tensor, scaling: float, untouched_NT: Tensor | None = None
) -> Tensor:
    """`output` + scaling * B A x: A is [R, D] and B [O, R], or per update [U, R, D] and [U, O, R] with N = U * n.

    To tokens of `untouched_NT` zero is added.
    """
    a = a.to(x_NTD.dtype)
    b = b.to(x_NTD.dtype)
    # Scale and mask are applied where a token has only R numbers, and the sum is part of the second product.
    if a.dim() == 2:
        low = F.linear(x_NTD, a).flatten(0, -2)
        low = low if scaling == 1 else low * scaling
        low = low if untouched_NT is None else low.masked_fill(untouched_NT.reshape(-1, 1), 0.0)
        return torch.addmm(output_NTO.flatten(0, -2), low, b.t()).view(output_NTO.shape)
    updates = a.shape[0]
    low = torch.bmm(x_NTD.reshape(updates, -1, x_NTD.shape[-1]), a.mT)
    low = low if scaling == 1 else low * scaling
    low = low if untouched_NT is None else low.masked_fill(untouched_NT.reshape(updates, -1, 1), 0.0)
    return torch.baddbmm(output_NTO.reshape(updates, -1, b.shape[1]), low, b.mT).view(output_NTO.shape)
