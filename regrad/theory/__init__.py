"""Attention that is gradient descent: the constructed linear layer of in-context optimisation with retrieval."""

from __future__ import annotations

from regrad.theory.attention import LinearAttention, one_step_layer, repeatable_layer, run_stack, tokens_of
from regrad.theory.objective import LinearProblem, descend, dot_product_weights, projection_weights

__all__ = [
    "LinearAttention",
    "LinearProblem",
    "descend",
    "dot_product_weights",
    "one_step_layer",
    "projection_weights",
    "repeatable_layer",
    "run_stack",
    "tokens_of",
]
