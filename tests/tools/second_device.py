"""A second device made of this machine's memory, for tests of models that are split over two.

Inside `second_device()` a tensor on `SECOND` keeps its numbers in ordinary memory, and every operation is computed as
ever, but one that reads tensors of both devices raises `RuntimeError`, as on two GPUs. What may cross is what crosses
there: a copy that says where to, and a single number of the CPU. `SECOND` is torch's `meta` device, the only other one
that a machine without GPUs differentiates on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from regrad.models.loading import LanguageModel
from regrad.models.placement import connect

SECOND = torch.device("meta")
FIRST = torch.device("cpu")
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class _There(Tensor):
    """A tensor of the second device: `numbers` are its numbers, in ordinary memory."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> _There:
        # Never one of inference mode: torch cannot make these views of those that are there from before it.
        with torch.inference_mode(False):
            there: _There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls,
                numbers.shape,
                strides=numbers.stride(),
                storage_offset=numbers.storage_offset(),
                dtype=numbers.dtype,
                device=SECOND,
            )
        there.numbers = numbers
        return there

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} reads a tensor of the second device outside of `second_device()`")


class _Devices(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # In inference mode operations that are made of others come whole, and a device may be any of their arguments.
        if torch.is_inference_mode_enabled():
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        values, form = tree_flatten((args, kwargs))
        there = [value for value in values if isinstance(value, _There)]
        wanted = kwargs.get("device")
        if not there and wanted is None:
            return func(*args, **kwargs)
        # A single number of the CPU may be an operand on any device.
        tensors = [value for value in values if isinstance(value, Tensor)]
        here = [value for value in tensors if not isinstance(value, _There) and value.dim()]
        if there and here and func not in _COPIES:
            raise RuntimeError(f"{func} reads tensors of two devices, on the first of shapes {[*map(_shape, here)]}")

        # Computed with the numbers, where they are. The result is on the device that was named, or that of the first.
        numbers = [value.numbers if isinstance(value, _There) else value for value in values]
        if wanted is not None:
            far = torch.device(wanted).type == SECOND.type
            numbers = [FIRST if isinstance(value, torch.device) else value for value in numbers]
        else:
            far = isinstance(tensors[0], _There)
        plain_args, plain_kwargs = tree_unflatten(numbers, form)
        given = {id(number): value for number, value in zip(numbers, values, strict=True) if isinstance(value, _There)}

        def back(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            whole = given.get(id(value))  # of an operation in place
            return whole if whole is not None else _There(value) if far else value

        return tree_map(back, func(*plain_args, **plain_kwargs))


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)


@contextmanager
def second_device() -> Iterator[None]:
    """Inside the block there is a second device."""
    with _Devices():
        yield


def split(lm: LanguageModel, at: int) -> None:
    """Put the model's blocks from number `at` on the second device; only inside of `second_device()`."""
    _, blocks = lm.architecture.block_list(lm.model)
    for block in list(blocks.children())[at:]:
        block.to(SECOND)
    connect(lm.model)
