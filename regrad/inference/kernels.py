"""What computes the engine's passes on a CPU: a fused attention, and linear layers' products in the order that is fast.

A group's queries share keys and values there. In all other passes a model's attention is what its settings say:
training differentiates it twice, which fused kernels do not allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrad.models.loading import LanguageModel

_NAME = "regrad_grouped"
# What some families pass to their attention that changes its result, and that the kernel does not know.
_UNKNOWN = ("softcap", "s_aux", "position_bias", "head_mask")

# A product of fewer numbers is over before its order matters.
_LEAST_NUMBERS = 1 << 16
# The library rearranges its second operand, which in x W' is the weight. In W x' it is the tokens, as long as they are
# few; beyond that the vocabulary's weight, which is the largest, is cut into parts that stay in the processor's cache.
MOST_TOKENS = 8
_VOCABULARY = 1 << 14
_PART = 256


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: queries [N, H, T, D], keys and values [N, G, L, D] -> [N, T, H, D].

    transformers' own `sdpa` copies keys and values for each of the H / G heads of a group when there is a mask; the
    kernels on a CPU need no such copies. Raises `NotImplementedError` for an attention with anything beside the mask.
    """
    if unknown := [name for name in _UNKNOWN if others.get(name) is not None]:
        raise NotImplementedError(f"the fused attention does not know {unknown}")
    grouped = query.shape[1] != key.shape[1]
    output = F.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling, enable_gqa=grouped)
    return output.transpose(1, 2), None


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


def attention_of(lm: LanguageModel) -> str:
    """The name of the attention that the model's own passes run."""
    return str(lm.text_config._attn_implementation)


class Kernels:
    """What computes the passes of an engine: the model's own attention and layers, or those that are faster here."""

    def __init__(self, lm: LanguageModel, attention: bool = False, products: bool = False) -> None:
        if attention:
            # Here, as it brings all that models are made of: seconds, in each process of a job that has no model.
            from transformers import AttentionInterface

            AttentionInterface.register(_NAME, grouped_attention)
        # A model's modules may have configurations of their own, and each reads in its own which attention it runs.
        configs = {id(each): each for each in (getattr(m, "config", None) for m in lm.model.modules()) if each}
        known = [each for each in configs.values() if hasattr(each, "_attn_implementation")]
        self._configs = known if attention else []
        self._products = large_products(lm.model) if products else []

    @staticmethod
    def choices(lm: LanguageModel) -> tuple[Kernels, ...]:
        """What may be used, the fastest first; the model's own are the last."""
        # On a GPU a mask rules the fused kernels out, unless keys and values are copied, which transformers does.
        if lm.device.type != "cpu":
            return (Kernels(lm),)
        fused = (Kernels(lm, True, True),) if getattr(lm.model, "_supports_sdpa", False) else ()
        return *fused, Kernels(lm, products=True), Kernels(lm)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside the block, the model's passes run with them."""
        before = [config._attn_implementation_internal for config in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation_internal = _NAME
            with computed(self._products):
                yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = name
