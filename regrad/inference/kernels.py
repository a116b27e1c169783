"""What computes the engine's passes: on a CPU a fused attention, in which a group's queries share keys and values.

The products of linear layers are in `products.py`. In all other passes a model's attention is what its settings say:
training differentiates it twice, which fused kernels do not allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from regrad.inference.products import computed, large_products
from regrad.models.loading import LanguageModel

_NAME = "regrad_grouped"
# What some families pass to their attention that changes its result, and that the kernel does not know.
_UNKNOWN = ("softcap", "s_aux", "position_bias", "head_mask")


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
