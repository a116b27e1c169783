"""How the gradients of a question's passages become one: by name, for the settings of a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Merge = Callable[[Tensor, Sequence[float]], Tensor]
"""Gradients [K, P] (K at least 1), best first, and the passages' retrieval scores, to one [P]."""


def add(gradients_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """Their sum: what meta-training minimises (paper, eq. 3)."""
    return gradients_KP.sum(0)


def average(gradients_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """Their mean."""
    return gradients_KP.mean(0)


MERGES: dict[str, Merge] = {"sum": add, "mean": average}
