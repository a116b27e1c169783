"""Merging: how the gradients of a question's passages become one vector.

Every merge is `(parts [K, P], scores) -> [P]`: atoms, or atoms times step sizes, best first, and the scores that the
retriever gave them (any scale; higher is better). The paper's method is `sum`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regrad.errors import MethodError
from regrad.registry import Registry

Merge = Callable[[Tensor, Sequence[float]], Tensor]

MERGES: Registry[Merge] = Registry("weighting", MethodError)
"""Every merge by name."""

_DECAY = 0.3
_TEMPERATURE = 2.0
_KEPT = 0.2


@MERGES.register("sum")
def sum_(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """Each with weight one."""
    return parts_KP.sum(0)


@MERGES.register("mean")
def mean(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """Each with weight 1/K, so that more passages make no longer update."""
    return parts_KP.mean(0)


@MERGES.register("root")
def root(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """Each with weight 1/sqrt(K), between sum and mean: orthogonal vectors then make no longer update."""
    return parts_KP.sum(0) / math.sqrt(len(parts_KP))


@MERGES.register("first")
def first(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """The best one alone."""
    return parts_KP[_ranked(scores)[0]]


@MERGES.register("decayed")
def decayed(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """The best one with weight one, each next one with 0.3 times the weight before it, whatever their scores."""
    weights = torch.empty(len(parts_KP))
    weights[_ranked(scores)] = _DECAY ** torch.arange(len(parts_KP)).float()
    return _weighted(parts_KP, weights)


@MERGES.register("softmax")
def softmax(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """Weights by score that add up to one."""
    return _weighted(parts_KP, _exponential(scores).softmax(0))


@MERGES.register("relative")
def relative(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """Weights by score, where the best one has weight one: equal scores give the sum."""
    values = _exponential(scores)
    return _weighted(parts_KP, (values - values.max()).exp())


@MERGES.register("proportional")
def proportional(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """Each with its score divided by the best score (scores above zero)."""
    values = torch.tensor([max(score, 0.0) for score in scores])
    return _weighted(parts_KP, values / values.max()) if values.max() > 0 else parts_KP.sum(0)


@MERGES.register("consensus")
def consensus(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """A number counts only where it has the sign of the sum (the sign election of TIES merging)."""
    agree = parts_KP.sign() == parts_KP.sum(0).sign()
    return (parts_KP * agree).sum(0)


@MERGES.register("trimmed")
def trimmed(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """The sum of the largest fifth of each vector's numbers."""
    size = parts_KP.shape[1]
    threshold = parts_KP.abs().kthvalue(size - int(_KEPT * size), dim=1).values
    return (parts_KP * (parts_KP.abs() > threshold[:, None])).sum(0)


@MERGES.register("largest")
def largest(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """Each number from the vector where its absolute value is largest."""
    return parts_KP.gather(0, parts_KP.abs().argmax(0)[None])[0]


@MERGES.register("orthogonal")
def orthogonal(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
    """Of each vector only the part orthogonal to all better ones: what they share counts once (Gram-Schmidt)."""
    ranked = parts_KP[_ranked(scores)].double()
    directions: list[Tensor] = []
    total_P = torch.zeros_like(ranked[0])
    for part_P in ranked:
        rest_P = part_P - sum(((part_P @ d) * d for d in directions), torch.zeros_like(part_P))
        total_P += rest_P
        if rest_P.norm() > 1e-9 * part_P.norm():
            directions.append(rest_P / rest_P.norm())
    return total_P.to(parts_KP.dtype)


def _ranked(scores: Sequence[float]) -> list[int]:
    """Positions, best first; of equal scores the earlier one first."""
    return sorted(range(len(scores)), key=lambda i: -scores[i])


def _exponential(scores: Sequence[float]) -> Tensor:
    return torch.tensor(list(scores), dtype=torch.float32) / _TEMPERATURE


def _weighted(parts_KP: Tensor, weights_K: Tensor) -> Tensor:
    return weights_K.to(parts_KP) @ parts_KP
