"""How far a predicted update is from the gradient steps that it stands for: by direction and by norm (RAG-GD, Sec 5).

An update of a projection is compared in one of two spaces. Of `factors` it is the differences of A and of B, in one
vector. Of `products` it is the matrix B A [out, in], which is never formed: inner products and norms follow from the
factors, as <B A, D C> = sum of (B^T D) * (A C^T), two matrices of rank by rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regrad.models.subspace import Subspace
from regrad.training.predictor.config import UpdateSpace


@dataclass(frozen=True)
class Likeness:
    """Of each update's each projection [U, M]: the cosine, and the natural log of predicted over target norm.

    `moved` [U, M] bool: whether the target moves the projection at all; elsewhere the two are zero.
    """

    cosine: Tensor
    log_ratio: Tensor
    moved: Tensor

    def loss(self, norm_weight: float) -> Tensor:
        """[U]: the sum over projections of 1 - cosine + weight * |log ratio|.

        The paper prints no absolute value; without it the term would reward an update for being small.
        """
        each = 1 - self.cosine + norm_weight * self.log_ratio.abs()
        return torch.where(self.moved, each, 0.0).sum(-1)


def target_of(subspace: Subspace, start_P: Tensor, ends_UP: Tensor, space: UpdateSpace) -> tuple[Subspace, Tensor]:
    """What led from one LoRA to others [U, P]: their differences, or [U, p] LoRAs of twice the rank.

    The product of the latter is B1 A1 - B0 A0, of start 0 and end 1.
    """
    steps_UP = ends_UP - start_P
    if space == "factors":
        return subspace, steps_UP
    # (B1 - B0) A0 + B1 (A1 - A0), not B1 A1 - B0 A0: the norm of a small difference of two large products would be lost
    # in rounding, as it is computed from inner products of the factors.
    start, ends, steps = (subspace.unflatten(flat) for flat in (start_P, ends_UP, steps_UP))
    double = Subspace(subspace.modules, 2 * subspace.rank, subspace.scaling)
    tensors = {}
    for name, _, _ in subspace.modules:
        a, b = f"{name}.A", f"{name}.B"
        tensors[a] = torch.cat([start[a].expand_as(steps[a]), steps[a]], -2)
        tensors[b] = torch.cat([steps[b], ends[b]], -1)
    return double, double.flatten(tensors)


def likeness(predicted: tuple[Subspace, Tensor], target: tuple[Subspace, Tensor], space: UpdateSpace) -> Likeness:
    """Of LoRAs [U, p] and [U, q] of the same projections; differentiable with respect to the predicted ones.

    In the space of products their ranks may differ.
    """
    inner = _factors if space == "factors" else _products
    dots, own, wanted = (inner(*pair) for pair in ((predicted, target), (predicted, predicted), (target, target)))
    moved = wanted > 0
    # A projection that the target leaves alone has no direction; the ones keep its division out of the gradient.
    own, wanted = (torch.where(moved, norms.clamp_min(_TINY), 1.0) for norms in (own, wanted))
    cosine = torch.where(moved, dots / (own.sqrt() * wanted.sqrt()), 0.0)
    return Likeness(cosine, 0.5 * (own.log() - wanted.log()), moved)


_TINY = 1e-30
"""The smallest squared norm of a prediction: of zeros neither direction nor log norm is defined."""


def _factors(one: tuple[Subspace, Tensor], other: tuple[Subspace, Tensor]) -> Tensor:
    """Inner products [U, M] of the factors' numbers."""
    products = one[1] * other[1]
    lengths = [rank * (inputs + outputs) for _, inputs, outputs in one[0].modules for rank in [one[0].rank]]
    return torch.stack([part.sum(-1) for part in torch.split(products, lengths, -1)], -1)


def _products(one: tuple[Subspace, Tensor], other: tuple[Subspace, Tensor]) -> Tensor:
    """Inner products [U, M] of the matrices scaling * B A."""
    left, right = one[0].unflatten(one[1]), other[0].unflatten(other[1])
    found = []
    for name, _, _ in one[0].modules:
        outputs = left[f"{name}.B"].mT @ right[f"{name}.B"]
        inputs = left[f"{name}.A"] @ right[f"{name}.A"].mT
        found.append((outputs * inputs).sum((-2, -1)))
    return one[0].scaling * other[0].scaling * torch.stack(found, -1)
