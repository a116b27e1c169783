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
from typing import Any

import torch

from regrad.models.loading import LanguageModel


def atom_flop(lm: LanguageModel, tokens: int) -> float:
    """FLOP of one passage's atom; `tokens` with the first one, which is not predicted."""
    config: Any = lm.model.config
    t, d, f, r = tokens - 1, config.hidden_size, config.intermediate_size, lm.subspace.rank
    head_size = getattr(config, "head_dim", None) or d // config.num_attention_heads
    q, k = config.num_attention_heads * head_size, config.num_key_value_heads * head_size
    attention, scores, mlp = 2 * t * (2 * d * q + 2 * d * k), 4 * t * t * q, 6 * t * d * f
    lora, head = 6 * t * r * (d + f), 2 * t * d * config.vocab_size
    upper, spared = len(lm.blocks.upper), attention + 2 * scores + 2 * mlp / 3 + 4 * t * r * d
    forward = config.num_hidden_layers * (attention + scores + mlp) + upper * lora + head
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
