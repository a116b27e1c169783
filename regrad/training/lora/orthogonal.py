"""Adapters of passages that stay out of what a static LoRA reads: Orthogonal Subspace Decomposition (arXiv 2604.26768).

The static LoRA has learned the task (how questions are asked and answered), the passages' adapters, trained on top of
it, are to hold knowledge alone. A LoRA reads its input x only through A x. So what is kept apart are the rows of the
two A of a projection, as in the authors' code (github.com/oneal2000/OSD, d8ca079), and nothing is asked of B:

- soft: w * sum over projections of ||A_D A_T^T||_F^2 is added to a passage's loss (D: the passage's, T: the task's);
- hard: A_D = A_hat N, where the rows of N are a basis of the null space of A_T, and A_hat is what is trained.

A projection that the static LoRA does not change is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from regrad.errors import TrainingError
from regrad.models.subspace import Subspace
from regrad.training.lora.lora_artifact import StaticLora

_NULL = 1e-5
"""Singular values of A_T below this share of the largest count as zero (in the authors' code: below this number)."""


def soft_penalty(subspace: Subspace, static: StaticLora, weight: float) -> Callable[[Tensor], Tensor]:
    """The penalty of LoRAs [..., P] in this subspace, one each [...]; differentiable.

    Raises `TrainingError` if the two have no projection in common.
    """
    read = _read_by(static, subspace)

    def penalty(rows: Tensor) -> Tensor:
        tensors = subspace.unflatten(rows)
        # trace(A_T A_D^T A_D A_T^T) is the sum of the squares of A_D A_T^T, which has one number for each pair of rows.
        overlaps = [tensors[f"{name}.A"] @ a_TI.to(rows).mT for name, a_TI in read.items()]
        return weight * torch.stack([overlap.square().sum((-2, -1)) for overlap in overlaps]).sum(0)

    return penalty


class NullSpace:
    """The LoRAs of a subspace whose A are orthogonal to a static LoRA's, and the numbers that they are made of.

    `inner` has these numbers: B as it is, and instead of A [rank, in] an A_hat [rank, in - r], where r is the rank of
    the static LoRA's A. Raises `TrainingError` if they have no projection in common, or if the null space has fewer
    dimensions than the rank.
    """

    def __init__(self, subspace: Subspace, static: StaticLora) -> None:
        self._subspace = subspace
        self._bases = {name: _Basis.of(a_TI) for name, a_TI in _read_by(static, subspace).items()}
        modules = []
        for name, inputs, outputs in subspace.modules:
            free = inputs - (self._bases[name].rank if name in self._bases else 0)
            if free < subspace.rank:
                raise TrainingError(
                    f"{name} has {inputs} inputs, of which the static LoRA reads {inputs - free}: {free} are left, too "
                    f"few for adapters of rank {subspace.rank} that are orthogonal to it; lower adapter.rank",
                    code="null_space_too_small",
                    projection=name,
                    free=free,
                    rank=subspace.rank,
                )
            modules.append((name, free, outputs))
        self.inner = Subspace(tuple(modules), subspace.rank, subspace.scaling)

    def lift(self, inner: Tensor) -> Tensor:
        """[..., p] -> the LoRAs that it stands for [..., P]; differentiable."""
        return self._subspace.flatten(self._mapped(self.inner.unflatten(inner), _Basis.lift))

    def project(self, rows: Tensor) -> Tensor:
        """LoRAs [..., P] -> [..., p]: what `lift` turns into them, without the part of A that is not orthogonal."""
        return self.inner.flatten(self._mapped(self._subspace.unflatten(rows), _Basis.project))

    def _mapped(self, tensors: Mapping[str, Tensor], change: Callable[[_Basis, Tensor], Tensor]) -> dict[str, Tensor]:
        bases = {f"{name}.A": basis for name, basis in self._bases.items()}
        return {name: change(bases[name], value) if name in bases else value for name, value in tensors.items()}


@dataclass(frozen=True)
class _Basis:
    """An orthogonal Q [in, in] whose first `rank` columns span the rows of A_T, and the others, N^T, its null space.

    It is kept as the `rank` Householder reflections that it is the product of: N itself has in^2 numbers, which for all
    projections of an 8B model would take 30 GB.
    """

    reflections: Tensor
    scales: Tensor

    @staticmethod
    def of(a_TI: Tensor) -> _Basis:
        """Of the rows of this matrix [r, in], in double precision: what is trained is to be orthogonal in single."""
        _, values, rows = torch.linalg.svd(a_TI.double().cpu(), full_matrices=False)
        spanned = rows[values > _NULL * values.max()]
        return _Basis(*torch.geqrf(spanned.mT.contiguous()))

    @property
    def rank(self) -> int:
        return len(self.scales)

    def lift(self, a_hat: Tensor) -> Tensor:
        """A_hat [..., R, in - rank] -> A_hat N [..., R, in]."""
        return self._times(pad(a_hat, (self.rank, 0)), transpose=True)

    def project(self, a: Tensor) -> Tensor:
        """A [..., R, in] -> A N^T [..., R, in - rank]."""
        return self._times(a, transpose=False)[..., self.rank :]

    def _times(self, rows: Tensor, transpose: bool) -> Tensor:
        """`rows` Q, or `rows` Q^T."""
        flat = rows.flatten(0, -2)
        product = torch.ormqr(self.reflections.to(flat), self.scales.to(flat), flat, left=False, transpose=transpose)
        return product.reshape(rows.shape)


def _read_by(static: StaticLora, subspace: Subspace) -> dict[str, Tensor]:
    """The static LoRA's A [r, in] of each projection that `subspace` adapts, too."""
    tensors = static.subspace.unflatten(static.values.detach())
    found = {name: tensors[f"{name}.A"] for name, _, _ in subspace.modules if f"{name}.A" in tensors}
    if not found:
        raise TrainingError(
            f"the static LoRA changes none of the {len(subspace.modules)} projections of the adapters, such as "
            f"{subspace.modules[0][0]}: there is nothing that they could be orthogonal to; train both with the same "
            "model.subspace.layers and projections",
            code="nothing_to_be_orthogonal_to",
            projections=len(subspace.modules),
        )
    return found
