"""The floating-point operations that an atom needs, and how many a second the machine does in a large matrix product.

A product of [n, k] and [k, m] counts 2nkm; nothing but products counts. Per passage, with T predicted tokens (padding
is not counted), L blocks, the upper U of them adapted (gate, up and down, rank R), D hidden, F ffn, Q and K the widths
of all query heads and of all key-value heads, and V the vocabulary:

    attention = 2 T (2 D Q + 2 D K)        scores = 4 T^2 Q (the whole square, as if nothing were masked)
    mlp = 2 T (3 D F)                      lora = 2 T (3 R (D + F))              head = 2 T D V

    forward  = L (attention + scores + mlp) + U lora + head
    backward = U (attention + 2 scores + mlp + 2 lora) + head - spared

The frozen weights need no gradient, so their backward pass is one product, that for the gradient of their input; a LoRA
factor has that and its own. `spared` is what lies before the first adapted projections and needs no gradient at all:

    spared   = attention + 2 scores + 2/3 mlp + 2 T (2 R D)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from regrad.models.loading import LanguageModel


@dataclass(frozen=True)
class Dimensions:
    """Of a decoder: blocks, those of them that are adapted, hidden, feed-forward, widths of all query heads and of all
    key-value heads, vocabulary, rank."""

    blocks: int
    upper: int
    hidden: int
    feed_forward: int
    queries: int
    keys: int
    vocabulary: int
    rank: int


def atom_flop(lm: LanguageModel, tokens: int) -> float:
    """FLOP of one passage's atom; `tokens` with the first one, which is not predicted."""
    config: Any = lm.model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = Dimensions(
        blocks=config.num_hidden_layers,
        upper=len(lm.blocks.upper),
        hidden=config.hidden_size,
        feed_forward=config.intermediate_size,
        queries=config.num_attention_heads * head_size,
        keys=config.num_key_value_heads * head_size,
        vocabulary=config.vocab_size,
        rank=lm.subspace.rank,
    )
    return flop_of(found, tokens)


def flop_of(of: Dimensions, tokens: int) -> float:
    """As `atom_flop`, of a model that need not be there."""
    t, d, f, r, q = tokens - 1, of.hidden, of.feed_forward, of.rank, of.queries
    attention, scores, mlp = 2 * t * (2 * d * q + 2 * d * of.keys), 4 * t * t * q, 6 * t * d * f
    lora, head = 6 * t * r * (d + f), 2 * t * d * of.vocabulary
    upper, spared = of.upper, attention + 2 * scores + 2 * mlp / 3 + 4 * t * r * d
    forward = of.blocks * (attention + scores + mlp) + upper * lora + head
    return forward + upper * (attention + 2 * scores + mlp + 2 * lora) + head - spared


def matrix_peak(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """FLOP/s of a large square product: the best of `repeats`, as other work on the machine can only slow it down."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
