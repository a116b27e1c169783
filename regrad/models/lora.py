"""Per-request LoRA: updates are inputs of a batch, never writes to the weights.

A forward hook on each adapted projection adds scaling * B A x, with the A and B of the row that x belongs to. What an
engine's rows run with is kept between its passes (`RowUpdates`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from regrad.errors import ModelError
from regrad.models.placement import DevicePart, device_of, parts_of
from regrad.models.sharded import whole_shape
from regrad.models.subspace import Subspace

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

_FIRST_ROWS = 4


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
        tensors = self.subspace.unflatten(flat)
        # In a model that is split over devices each goes to that of its block, and its gradient comes back from there.
        placed = {name: tensor.to(device_of(self._modules[name[:-2]])) for name, tensor in tensors.items()}
        with self._in_force(placed, untouched_NT, scaled=False):
            yield

    @contextmanager
    def applied_scaled(self, tensors: dict[str, Tensor]) -> Iterator[None]:
        """As `applied`, with tensors by name, each on its block's device; B has the subspace's scale in it."""
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
            untouched_NT = None if self._untouched_NT is None else self._untouched_NT.to(output.device)
            return add_lora(output, inputs[0], a, b, scaling, untouched_NT)

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
    rows, columns = whole_shape(module.weight)
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


class RowUpdates:
    """What each row runs with: an update in one subspace or in several, or none.

    A subspace takes memory only while a row has an update in it, and time only in passes of such a row.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._dtype = lm.compute_dtype
        # The model's own subspace is kept for good: most rows have their update there, and making room for it at every
        # single request costs more than keeping it.
        self._kept = {lm.subspace: _SubspaceRows(lm, lm.subspace, self._dtype, 1)}
        self._rows = 0

    def put(self, row: int, vectors: Mapping[Subspace, Tensor]) -> None:
        """Replace a row's updates ([P] in each subspace)."""
        self._rows = max(self._rows, row + 1)
        for subspace in vectors:
            if subspace not in self._kept:
                self._kept[subspace] = _SubspaceRows(self._lm, subspace, self._dtype, self._rows)
        for subspace, kept in self._kept.items():
            kept.put(row, vectors.get(subspace))

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        for kept in self._kept.values():
            kept.move(source, target)

    def truncate(self, rows: int) -> None:
        """Only the first `rows` are in use from now on; what none of them needs is dropped."""
        self._rows = rows
        for kept in self._kept.values():
            kept.truncate(rows)
        for subspace in [subspace for subspace, kept in self._kept.items() if not kept.users]:
            if subspace != self._lm.subspace:
                self._kept.pop(subspace).release()

    def release(self) -> None:
        """Take the hooks off the model: no row is used any more."""
        for kept in self._kept.values():
            kept.release()
        self._kept = {}

    def applied(self, numbers: Sequence[int], rows: slice | Tensor) -> AbstractContextManager[None]:
        """Inside the block, row i of a pass runs with the updates of row `numbers[i]`; `rows` is `numbers` as index."""
        needed = [kept.applied(rows) for kept in self._kept.values() if not kept.users.isdisjoint(numbers)]
        if len(needed) < 2:  # the usual case, and a stack costs a pass of a small model a few percent
            return needed[0] if needed else nullcontext()
        return _entered(needed)


@contextmanager
def _entered(contexts: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


class _SubspaceRows:
    """Updates [S, P] in one subspace, in the model's precision, each B multiplied by the subspace's scale."""

    # Rows without an update, which are not in `users`, are zeros, for which B A x is zero. There is room for all rows
    # in use, whether or not they have an update here.

    def __init__(self, lm: LanguageModel, subspace: Subspace, dtype: torch.dtype, rows: int) -> None:
        self.users: set[int] = set()
        self._lora = lm.lora_for(subspace)
        self._lora.hold()
        self._parts = [_PartRows(part, dtype, _room(rows)) for part in parts_of(lm.model, subspace)]

    def put(self, row: int, update_P: Tensor | None) -> None:
        for part in self._parts:
            part.put(row, update_P)
        if update_P is None:
            self.users.discard(row)
        else:
            self.users.add(row)

    def move(self, source: int, target: int) -> None:
        if source in self.users or target in self.users:
            for part in self._parts:
                part.move(source, target)
        self.users.discard(target)
        if source in self.users:
            self.users.add(target)

    def truncate(self, rows: int) -> None:
        self.users = {row for row in self.users if row < rows}

    def release(self) -> None:
        self._lora.release()

    def applied(self, rows: slice | Tensor) -> AbstractContextManager[None]:
        first, *others = (part.tensors(rows) for part in self._parts)
        for other in others:
            first = first | other
        return self._lora.applied_scaled(first)


class _PartRows:
    """Of the updates in one subspace what is on one device, beside the blocks that it changes."""

    # The rows of any pass are one view of the memory, and usually one that an earlier pass has made.

    def __init__(self, part: DevicePart, dtype: torch.dtype, rows: int) -> None:
        self._part, self._dtype = part, dtype
        scales = [part.subspace.scaling if name.endswith(".B") else 1.0 for name in part.subspace.shapes]
        self._scale_P = part.subspace.per_tensor(torch.tensor(scales)).to(part.device)
        self._kept = self._blank(rows)
        self._views: dict[tuple[int, int], dict[str, Tensor]] = {}

    def put(self, row: int, update_P: Tensor | None) -> None:
        if row >= self._kept.shape[0]:
            larger = self._blank(_room(row + 1))
            larger[: self._kept.shape[0]] = self._kept
            self._kept = larger
            self._views = {}
        if update_P is None:
            self._kept[row].zero_()
        else:
            self._kept[row].copy_(self._part.of(update_P).float().to(self._part.device) * self._scale_P)

    def move(self, source: int, target: int) -> None:
        self._kept[target].copy_(self._kept[source])

    def tensors(self, rows: slice | Tensor) -> dict[str, Tensor]:
        """Those of these rows by name."""
        if isinstance(rows, Tensor):
            return self._part.subspace.unflatten(self._kept[rows.to(self._part.device)])
        key = (rows.start, rows.stop)
        if key not in self._views:
            one = rows.stop - rows.start == 1
            self._views[key] = self._part.subspace.unflatten(self._kept[rows.start] if one else self._kept[rows])
        return self._views[key]

    def _blank(self, rows: int) -> Tensor:
        return torch.zeros(rows, self._part.subspace.size, dtype=self._dtype, device=self._part.device)


def _room(rows: int) -> int:
    """For how many rows to make room: a power of two, so that it is seldom made."""
    return max(_FIRST_ROWS, 1 << (rows - 1).bit_length())
