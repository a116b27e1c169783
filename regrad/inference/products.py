"""The linear layers of the engine's passes on a CPU: the same products, in the order that is faster for few tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A product of fewer numbers is over before its order matters.
_LEAST_NUMBERS = 1 << 16
# The library rearranges its second operand, which in x W' is the weight. In W x' it is the tokens, as long as they are
# few; beyond that the vocabulary's weight, which is the largest, is cut into parts that stay in the processor's cache.
MOST_TOKENS = 8
_VOCABULARY = 1 << 14
_PART = 256


def large_product(x: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    """`F.linear` of [..., D], where it is faster as (W x')' or in parts: the same sums, perhaps in another order."""
    outputs, inputs = weight_OD.shape
    tokens = x.numel() // inputs
    if tokens < 2 or x.dtype != torch.float32:
        return F.linear(x, weight_OD, bias_O)
    if tokens <= MOST_TOKENS:
        product_MO = torch.mm(weight_OD, x.reshape(tokens, inputs).contiguous().t()).t()
        product_MO = product_MO if bias_O is None else product_MO + bias_O
        return product_MO.view(*x.shape[:-1], outputs)
    if outputs < _VOCABULARY:
        return F.linear(x, weight_OD, bias_O)
    product = torch.cat([F.linear(x, part) for part in torch.split(weight_OD, _PART)], -1)
    return product if bias_O is None else product + bias_O


def large_products(model: nn.Module) -> list[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """The model's linear layers that `large_product` is for, each with what computes it."""
    # A layer whose `forward` someone else has replaced is left alone.
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]  # measured with MKL only
        return []
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in module.__dict__
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and module.weight.numel() >= _LEAST_NUMBERS
    ]
    return [(layer, _Product(layer)) for layer in layers]


class _Product:
    """A layer's `forward`."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return large_product(x, self._layer.weight, self._layer.bias)


@contextmanager
def computed(products: Sequence[tuple[nn.Module, Callable[[Tensor], Tensor]]]) -> Iterator[None]:
    """Inside the block, these layers are computed so; hooks on them run as ever."""
    # Straight into the instance, as a module's own assignment looks for parameters first: there are hundreds a pass.
    try:
        for layer, product in products:
            layer.__dict__["forward"] = product
        yield
    finally:
        for layer, _ in products:
            layer.__dict__.pop("forward", None)
