"""lowrank16 and lowrank32: each tensor's gradient as a product of two thin matrices, one in int8 and one in int4.

A LoRA tensor is long and thin (R on one side), and a passage's gradient for it is close to a matrix of lower rank. So
T [long, short], or its transpose, is stored as C V with r orthonormal rows V [r, short] and C [long, r]. C is fitted to
V as it will be read, so that C makes up for the rounding of V. The rank r is the same for all tensors and follows from
the subspace: the largest with which a record is at most 1/16 or 1/32 of float32.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property

import torch
from torch import Tensor

from regrad.bank.codecs.base import Codec
from regrad.bank.codecs.quantized import from_int4, from_int8, int4_bytes, int8_bytes, to_int4, to_int8
from regrad.models.subspace import Subspace

_RIDGE = 1e-6


class LowRankCodec(Codec):
    """The error is what the best matrix of rank r misses (`torch.linalg.svdvals`), and about a tenth for int4."""

    def __init__(self, subspace: Subspace, ratio: int) -> None:
        super().__init__(subspace)
        self._budget = 4 * subspace.size // ratio

    @cached_property
    def rank(self) -> int:
        """r, at least 1: in a tiny subspace a record may be larger than the budget."""
        return max(1, bisect_right(range(1, self.subspace.rank + 1), self._budget, key=self._bytes))

    @property
    def record_bytes(self) -> int:
        """V of all tensors as one int8 vector, then C of all tensors as one int4 vector."""
        return self._bytes(self.rank)

    def _bytes(self, rank: int) -> int:
        bases, coefficients = self._counts(rank)
        return int8_bytes(sum(bases)) + int4_bytes(sum(coefficients))

    def _counts(self, rank: int) -> tuple[list[int], list[int]]:
        """Numbers in V and in C of each tensor."""
        sides = [sorted(shape) for shape in self.subspace.shapes.values()]
        ranks = [min(rank, short) for short, _ in sides]
        bases = [r * short for r, (short, _) in zip(ranks, sides, strict=True)]
        return bases, [r * long for r, (_, long) in zip(ranks, sides, strict=True)]

    def _encode(self, atoms_NP: Tensor) -> Tensor:
        tensors = [_upright(tensor) for tensor in self.subspace.unflatten(atoms_NP).values()]
        bases = to_int8(torch.cat([_basis(tensor, self.rank).flatten(1) for tensor in tensors], dim=1))
        fitted = [_fit(tensor, basis) for tensor, basis in zip(tensors, self._bases(bases), strict=True)]
        return torch.cat([bases, to_int4(torch.cat([c.flatten(1) for c in fitted], dim=1))], dim=1)

    def _decode(self, records: Tensor) -> Tensor:
        split = int8_bytes(sum(self._counts(self.rank)[0]))
        pairs = zip(self._coefficients(records[:, split:]), self._bases(records[:, :split]), strict=True)
        products = [c.mT @ v for c, v in pairs]
        named = zip(self.subspace.shapes.items(), products, strict=True)
        return self.subspace.flatten({name: p if _is_upright(shape) else p.mT for (name, shape), p in named})

    def _bases(self, data: Tensor) -> list[Tensor]:
        """V [n, r, short] of each tensor."""
        counts = self._counts(self.rank)[0]
        parts = torch.split(from_int8(data, sum(counts)), counts, dim=1)
        shorts = [min(shape) for shape in self.subspace.shapes.values()]
        return [part.reshape(len(data), -1, short) for part, short in zip(parts, shorts, strict=True)]

    def _coefficients(self, data: Tensor) -> list[Tensor]:
        """C transposed [n, r, long] of each tensor: the numbers of one column of C lie side by side."""
        counts = self._counts(self.rank)[1]
        parts = torch.split(from_int4(data, sum(counts)), counts, dim=1)
        longs = [max(shape) for shape in self.subspace.shapes.values()]
        return [part.reshape(len(data), -1, long) for part, long in zip(parts, longs, strict=True)]


def _is_upright(shape: tuple[int, ...]) -> bool:
    return shape[0] >= shape[1]


def _upright(tensor: Tensor) -> Tensor:
    return tensor if _is_upright(tensor.shape[-2:]) else tensor.mT


def _basis(tensor: Tensor, rank: int) -> Tensor:
    """The first right singular vectors of [n, long, short], the largest first: [n, at most rank, short]."""
    largest = tensor.abs().amax((-2, -1), keepdim=True)
    scaled = tensor / torch.where(largest == 0, 1, largest)
    _, vectors = torch.linalg.eigh(scaled.mT @ scaled)
    basis: Tensor = vectors.flip(-1)[..., :rank].mT
    return basis


def _fit(tensor: Tensor, basis: Tensor) -> Tensor:
    """The least-squares C, transposed [n, r, long], with tensor = C V nearly."""
    gram = basis @ basis.mT + _RIDGE * torch.eye(basis.shape[-2], device=basis.device)
    fitted: Tensor = torch.linalg.solve(gram, basis @ tensor.mT)
    return fitted
