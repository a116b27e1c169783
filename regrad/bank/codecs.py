"""How an atom is stored: atoms [n, P] float32 to records [n, record_bytes] uint8 and back, for one subspace.

A codec depends on nothing but the subspace, which a bank's manifest has, so a bank explains itself. All records of a
subspace have the same number of bytes, so one atom is one ranged read. docs/bank-format.md has every byte.

A new codec is a subclass of `Codec`, its name in `regrad.bank.config.CodecName`, and one line in `CODECS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from regrad.errors import BankError
from regrad.models.subspace import Subspace, finite_rows
from regrad.registry import Registry


class Codec(ABC):
    """Encodes on the device that the atoms are on. Numbers of size up to 1e36 come back finite."""

    def __init__(self, subspace: Subspace) -> None:
        self.subspace = subspace

    @property
    @abstractmethod
    def record_bytes(self) -> int:
        """Bytes of one record."""

    @abstractmethod
    def _encode(self, atoms_NP: Tensor) -> Tensor:
        """Finite atoms [n, P] float32 -> records [n, record_bytes] uint8."""

    @abstractmethod
    def _decode(self, records: Tensor) -> Tensor:
        """Records [n, record_bytes] uint8, n at least 1 -> atoms [n, P] float32."""

    def encode(self, atoms_NP: Tensor) -> Tensor:
        """Atoms [n, P] -> records [n, record_bytes] uint8; raises `BankError` for another P or a non-finite number."""
        if atoms_NP.dim() != 2 or atoms_NP.shape[1] != self.subspace.size:
            raise BankError(
                f"atoms of {self.subspace.size} numbers are expected, found {tuple(atoms_NP.shape)}",
                code="wrong_shape",
                expected=self.subspace.size,
                found=list(atoms_NP.shape),
            )
        finite = finite_rows(atoms_NP)
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise BankError(
                f"atom {row} has a number that is not finite; put its passage on the quarantine list instead",
                code="not_finite",
                row=row,
            )
        if not len(atoms_NP):
            return torch.empty(0, self.record_bytes, dtype=torch.uint8, device=atoms_NP.device)
        return self._encode(atoms_NP.float())

    def decode(self, records: Tensor) -> Tensor:
        """Records [n, record_bytes] uint8 -> atoms [n, P] float32; raises `BankError` for another shape or type."""
        if records.dim() != 2 or records.shape[1] != self.record_bytes or records.dtype != torch.uint8:
            raise BankError(
                f"records of {self.record_bytes} bytes are expected, found {tuple(records.shape)} {records.dtype}",
                code="wrong_shape",
                expected=self.record_bytes,
                found=list(records.shape),
            )
        if not len(records):
            return torch.empty(0, self.subspace.size, device=records.device)
        return self._decode(records)

    def add_decoded(self, records: Iterable[Tensor], out_P: Tensor) -> Tensor:
        """Add the atoms of records [record_bytes] uint8 to `out_P` [P] float32 in place, one at a time; returns it."""
        for record in records:
            out_P += self.decode(record.unsqueeze(0))[0]
        return out_P

    def sum(self, records: Sequence[Tensor]) -> Tensor:
        """The sum [P] float32 of the atoms of records [record_bytes] uint8; zeros for none."""
        return self.add_decoded(records, torch.zeros(self.subspace.size))


def _read_as(dtype: torch.dtype, data: Tensor) -> Tensor:
    """Bytes [n, b] as n rows of numbers. A copy: `contiguous` leaves a single row strides that `view` refuses."""
    return data.clone(memory_format=torch.contiguous_format).view(dtype)


class CastCodec(Codec):
    """float32 is exact; bf16 rounds to nearest, an error of at most 2^-8 of each normal number."""

    def __init__(self, subspace: Subspace, dtype: torch.dtype) -> None:
        super().__init__(subspace)
        self._dtype = dtype

    @property
    def record_bytes(self) -> int:
        """P times the bytes of one number."""
        return self.subspace.size * self._dtype.itemsize

    def _encode(self, atoms_NP: Tensor) -> Tensor:
        return atoms_NP.to(self._dtype).contiguous().view(torch.uint8)

    def _decode(self, records: Tensor) -> Tensor:
        return _read_as(self._dtype, records).float()

    def add_decoded(self, records: Iterable[Tensor], out_P: Tensor) -> Tensor:
        """As `Codec.add_decoded`, straight from the stored numbers: nothing is copied."""
        for record in records:
            out_P += record.view(self._dtype)
        return out_P

    def sum(self, records: Sequence[Tensor]) -> Tensor:
        """As `Codec.sum`; for float32 the result begins as the sum of the first two, with fewer passes over memory."""
        if self._dtype != torch.float32 or len(records) < 2:
            return super().sum(records)
        first = torch.add(records[0].view(self._dtype), records[1].view(self._dtype))
        return self.add_decoded(records[2:], first)


# Numbers in groups of 64 with one scale each, as int8 or int4.

GROUP = 64
_TINY = torch.finfo(torch.float32).tiny
_UPPER_HALF = -(1 << 16)


def _groups(count: int) -> int:
    """How many groups `count` numbers make; the last one is padded with zeros."""
    return -(-count // GROUP)


def _int8_bytes(count: int) -> int:
    """Bytes of `count` numbers: one each, and a float32 scale a group."""
    return _groups(count) * (GROUP + 4)


def _to_int8(numbers_NQ: Tensor) -> Tensor:
    """Numbers [n, Q] float32 -> bytes [n, _int8_bytes(Q)]; the error is at most half a step, absmax / 254."""
    grouped = _grouped(numbers_NQ)
    scales = _without_tiny(grouped.abs().amax(-1) / 127)
    steps = _steps(grouped, scales, 127)
    return torch.cat([steps.flatten(1).view(torch.uint8), scales.contiguous().view(torch.uint8)], dim=1)


def _from_int8(data: Tensor, count: int) -> Tensor:
    """Bytes [n, _int8_bytes(Q)] -> numbers [n, Q] float32."""
    split = _groups(count) * GROUP
    return _scaled(_read_as(torch.int8, data[:, :split]), _read_as(torch.float32, data[:, split:]), count)


def _int4_bytes(count: int) -> int:
    """Bytes of `count` numbers: half a byte each, and a bfloat16 scale a group."""
    return _groups(count) * (GROUP // 2 + 2)


def _to_int4(numbers_NQ: Tensor) -> Tensor:
    """Numbers [n, Q] float32 -> bytes [n, _int4_bytes(Q)]; the error is at most half a step, absmax / 14."""
    grouped = _grouped(numbers_NQ)
    scales = _without_tiny(_bf16_toward_zero(grouped.abs().amax(-1) / 7))
    nibbles = (_steps(grouped, scales, 7) + 8).view(torch.uint8).flatten(1)
    packed = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return torch.cat([packed, scales.bfloat16().view(torch.uint8)], dim=1)


def _from_int4(data: Tensor, count: int) -> Tensor:
    """Bytes [n, _int4_bytes(Q)] -> numbers [n, Q] float32."""
    split = _groups(count) * GROUP // 2
    packed, scales = data[:, :split], _read_as(torch.bfloat16, data[:, split:]).float()
    nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)
    return _scaled(nibbles.view(torch.int8) - 8, scales, count)


def _grouped(numbers_NQ: Tensor) -> Tensor:
    rows, count = numbers_NQ.shape
    return F.pad(numbers_NQ, (0, -count % GROUP)).reshape(rows, -1, GROUP)


def _without_tiny(scales: Tensor) -> Tensor:
    # A subnormal scale has too few bits to divide by: its group, which is as good as zero, becomes zero.
    return torch.where(scales < _TINY, 0, scales)


def _bf16_toward_zero(positive: Tensor) -> Tensor:
    # Clearing the lower half truncates. Rounded up, a scale times 7 could be more than the largest float32.
    return (positive.contiguous().view(torch.int32) & _UPPER_HALF).view(torch.float32)


def _steps(grouped: Tensor, scales: Tensor, most: int) -> Tensor:
    divisor = torch.where(scales == 0, torch.inf, scales)  # a group of zeros divides to zeros, not to NaN
    return (grouped / divisor.unsqueeze(-1)).round().clamp(-most, most).to(torch.int8)


def _scaled(steps: Tensor, scales: Tensor, count: int) -> Tensor:
    grouped = steps.reshape(len(steps), -1, GROUP).float()
    return (grouped * scales.unsqueeze(-1)).flatten(1)[:, :count]


class Int8Codec(Codec):
    """The error of a number is at most 1/254 of the largest absolute value of its group."""

    @property
    def record_bytes(self) -> int:
        """Numbers of all groups, then their scales."""
        return _int8_bytes(self.subspace.size)

    def _encode(self, atoms_NP: Tensor) -> Tensor:
        return _to_int8(atoms_NP)

    def _decode(self, records: Tensor) -> Tensor:
        return _from_int8(records, self.subspace.size)


class Int4Codec(Codec):
    """The error of a number is at most 1/14 of the largest absolute value of its group."""

    @property
    def record_bytes(self) -> int:
        """Numbers of all groups, then their scales."""
        return _int4_bytes(self.subspace.size)

    def _encode(self, atoms_NP: Tensor) -> Tensor:
        return _to_int4(atoms_NP)

    def _decode(self, records: Tensor) -> Tensor:
        return _from_int4(records, self.subspace.size)


_RIDGE = 1e-6  # keeps the fit solvable where a tensor has a lower rank than the codec


class LowRankCodec(Codec):
    """lowrank16 and lowrank32: each tensor's gradient as a product of two thin matrices, one in int8 and one in int4.

    A LoRA tensor is long and thin (R on one side), and a passage's gradient for it is close to a matrix of lower rank.
    So T [long, short], or its transpose, is stored as C V with r orthonormal rows V [r, short] and C [long, r]. The
    rank r is the same for all tensors and follows from the subspace: the largest with which a record is at most 1/16 or
    1/32 of float32. The error is what the best matrix of rank r misses (`torch.linalg.svdvals`), plus about a tenth of
    it for int4.
    """

    def __init__(self, subspace: Subspace, ratio: int) -> None:
        super().__init__(subspace)
        self._budget = 4 * subspace.size // ratio

    @cached_property
    def rank(self) -> int:
        """r, at least 1: in a tiny subspace a record may exceed the budget."""
        return max(1, bisect_right(range(1, self.subspace.rank + 1), self._budget, key=self._bytes))

    @property
    def record_bytes(self) -> int:
        """V of all tensors as one int8 vector, then C of all tensors as one int4 vector."""
        return self._bytes(self.rank)

    def _bytes(self, rank: int) -> int:
        bases, coefficients = self._counts(rank)
        return _int8_bytes(sum(bases)) + _int4_bytes(sum(coefficients))

    def _counts(self, rank: int) -> tuple[list[int], list[int]]:
        """Numbers in V and in C of each tensor."""
        bases, coefficients = [], []
        for shape in self.subspace.shapes.values():
            short, long = sorted(shape)
            kept = min(rank, short)
            bases.append(kept * short)
            coefficients.append(kept * long)
        return bases, coefficients

    def _encode(self, atoms_NP: Tensor) -> Tensor:
        tensors = [_upright(tensor) for tensor in self.subspace.unflatten(atoms_NP).values()]
        bases = _to_int8(torch.cat([_basis(tensor, self.rank).flatten(1) for tensor in tensors], dim=1))
        # Fitted to the bases as they will be read back, so that the coefficients make up for their rounding.
        fitted = [_fit(tensor, basis) for tensor, basis in zip(tensors, self._bases(bases), strict=True)]
        return torch.cat([bases, _to_int4(torch.cat([c.flatten(1) for c in fitted], dim=1))], dim=1)

    def _decode(self, records: Tensor) -> Tensor:
        split = _int8_bytes(sum(self._counts(self.rank)[0]))
        pairs = zip(self._coefficients(records[:, split:]), self._bases(records[:, :split]), strict=True)
        products = [c.mT @ v for c, v in pairs]
        named = zip(self.subspace.shapes.items(), products, strict=True)
        return self.subspace.flatten({name: p if _is_upright(shape) else p.mT for (name, shape), p in named})

    def _bases(self, data: Tensor) -> list[Tensor]:
        """V [n, r, short] of each tensor."""
        counts = self._counts(self.rank)[0]
        parts = torch.split(_from_int8(data, sum(counts)), counts, dim=1)
        shorts = [min(shape) for shape in self.subspace.shapes.values()]
        return [part.reshape(len(data), -1, short) for part, short in zip(parts, shorts, strict=True)]

    def _coefficients(self, data: Tensor) -> list[Tensor]:
        """C transposed [n, r, long] of each tensor: the numbers of one column of C are adjacent."""
        counts = self._counts(self.rank)[1]
        parts = torch.split(_from_int4(data, sum(counts)), counts, dim=1)
        longs = [max(shape) for shape in self.subspace.shapes.values()]
        return [part.reshape(len(data), -1, long) for part, long in zip(parts, longs, strict=True)]


def _is_upright(shape: tuple[int, ...]) -> bool:
    return shape[0] >= shape[1]


def _upright(tensor: Tensor) -> Tensor:
    return tensor if _is_upright(tensor.shape[-2:]) else tensor.mT


def _basis(tensor: Tensor, rank: int) -> Tensor:
    """The first right singular vectors of [n, long, short], the largest first: [n, at most rank, short]."""
    # Scaled first: the squares in the Gram matrix would overflow or vanish. Its eigenvectors, which eigh gives from the
    # smallest up, are the right singular vectors, and R x R is far cheaper than an SVD of the long tensor.
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


CODECS: Registry[Callable[[Subspace], Codec]] = Registry(
    "codec",
    BankError,
    {
        "float32": partial(CastCodec, dtype=torch.float32),
        "bf16": partial(CastCodec, dtype=torch.bfloat16),
        "int8": Int8Codec,
        "int4": Int4Codec,
        "lowrank16": partial(LowRankCodec, ratio=16),
        "lowrank32": partial(LowRankCodec, ratio=32),
    },
)


def codec_for(name: str, subspace: Subspace) -> Codec:
    """The codec of this name for atoms of this subspace; raises `BankError` that names the nearest one if unknown."""
    return CODECS[name](subspace)
