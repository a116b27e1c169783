"""The attention of the engine's passes on a CPU: one fused kernel, in which a group's queries share keys and values.

A model's own attention stays what its settings say in every other pass: training differentiates it twice, and a fused
kernel cannot.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

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


AttentionInterface.register(_NAME, grouped_attention)


class PassAttention:
    """Which attention the passes of an engine use: the fused one, or the model's own."""

    def __init__(self, lm: LanguageModel, fused: bool) -> None:
        # A model's modules may have configurations of their own, and each reads in its own which attention it runs.
        configs = {id(each): each for each in (getattr(m, "config", None) for m in lm.model.modules()) if each}
        self._configs = [each for each in configs.values() if hasattr(each, "_attn_implementation")] if fused else []

    @staticmethod
    def choices(lm: LanguageModel) -> tuple[PassAttention, ...]:
        """What may be used, the fastest first."""
        # On a GPU a mask rules the fused kernels out, unless keys and values are copied, which transformers does.
        own = PassAttention(lm, fused=False)
        if lm.device.type != "cpu" or not getattr(lm.model, "_supports_sdpa", False):
            return (own,)
        return PassAttention(lm, fused=True), own

    @property
    def fused(self) -> bool:
        """Whether it is the fused one."""
        return bool(self._configs)

    def used(self) -> AbstractContextManager[None]:
        """Inside the block, the model's passes run with it."""
        return self._switched() if self._configs else nullcontext()

    @contextmanager
    def _switched(self) -> Iterator[None]:
        before = [config._attn_implementation_internal for config in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation_internal = _NAME
            yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = name
