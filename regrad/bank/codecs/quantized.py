"""Codecs that keep every number, in fewer bits: float32 and bf16, and int8 and int4 in groups with a scale each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regrad.bank.codecs.base import Codec
from regrad.models.subspace import Subspace

GROUP = 64
_TINY = torch.finfo(torch.float32).tiny
_UPPER_HALF = -(1 << 16)


def groups_of(count: int) -> int:
    """How many groups `count` numbers make, the last one filled up with zeros."""
    return -(-count // GROUP)


def int8_bytes(count: int) -> int:
    """Bytes of `count` numbers: one each, and a float32 scale a group."""
    return groups_of(count) * (GROUP + 4)


def to_int8(numbers_NQ: Tensor) -> Tensor:
    """Numbers [n, Q] float32 -> bytes [n, int8_bytes(Q)]; the error is at most half a step, absmax / 254."""
    grouped = _grouped(numbers_NQ)
    scales = _without_tiny(grouped.abs().amax(-1) / 127)
    steps = _steps(grouped, scales, 127)
    return torch.cat([steps.flatten(1).view(torch.uint8), scales.contiguous().view(torch.uint8)], dim=1)


def from_int8(data: Tensor, count: int) -> Tensor:
    """The inverse: bytes [n, int8_bytes(Q)] -> numbers [n, Q] float32."""
    split = groups_of(count) * GROUP
    return _scaled(read_as(torch.int8, data[:, :split]), read_as(torch.float32, data[:, split:]), count)


def int4_bytes(count: int) -> int:
    """Bytes of `count` numbers: half a byte each, and a bfloat16 scale a group."""
    return groups_of(count) * (GROUP // 2 + 2)


def to_int4(numbers_NQ: Tensor) -> Tensor:
    """Numbers [n, Q] float32 -> bytes [n, int4_bytes(Q)]; the error is at most half a step, absmax / 14."""
    grouped = _grouped(numbers_NQ)
    scales = _without_tiny(_bf16_toward_zero(grouped.abs().amax(-1) / 7))
    nibbles = (_steps(grouped, scales, 7) + 8).view(torch.uint8).flatten(1)
    packed = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return torch.cat([packed, scales.bfloat16().view(torch.uint8)], dim=1)


def from_int4(data: Tensor, count: int) -> Tensor:
    """The inverse: bytes [n, int4_bytes(Q)] -> numbers [n, Q] float32."""
    split = groups_of(count) * GROUP // 2
    packed, scales = data[:, :split], read_as(torch.bfloat16, data[:, split:]).float()
    nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)
    return _scaled(nibbles.view(torch.int8) - 8, scales, count)


def read_as(dtype: torch.dtype, data: Tensor) -> Tensor:
    """Bytes [n, b] as n rows of numbers. A copy: `contiguous` leaves a single row strides that `view` refuses."""
    return data.clone(memory_format=torch.contiguous_format).view(dtype)


def _grouped(numbers_NQ: Tensor) -> Tensor:
    rows, count = numbers_NQ.shape
    return F.pad(numbers_NQ, (0, -count % GROUP)).reshape(rows, -1, GROUP)


def _without_tiny(scales: Tensor) -> Tensor:
    return torch.where(scales < _TINY, 0, scales)


def _bf16_toward_zero(positive: Tensor) -> Tensor:
    # Rounded up, a scale times 7 could be more than the largest float32.
    return (positive.contiguous().view(torch.int32) & _UPPER_HALF).view(torch.float32)


def _steps(grouped: Tensor, scales: Tensor, most: int) -> Tensor:
    divisor = torch.where(scales == 0, torch.inf, scales)
    return (grouped / divisor.unsqueeze(-1)).round().clamp(-most, most).to(torch.int8)


def _scaled(steps: Tensor, scales: Tensor, count: int) -> Tensor:
    grouped = steps.reshape(len(steps), -1, GROUP).float()
    return (grouped * scales.unsqueeze(-1)).flatten(1)[:, :count]


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
        return read_as(self._dtype, records).float()

    def add_decoded(self, records: Iterable[Tensor], out_P: Tensor) -> Tensor:
        """The same, straight from the stored numbers: nothing is copied."""
        for record in records:
            out_P += record.view(self._dtype)
        return out_P

    def sum(self, records: Sequence[Tensor]) -> Tensor:
        """The same in fewer passes over memory: of float32, the first two are added into the result as it is made."""
        if self._dtype != torch.float32 or len(records) < 2:
            return super().sum(records)
        first = torch.add(records[0].view(self._dtype), records[1].view(self._dtype))
        return self.add_decoded(records[2:], first)


class Int8Codec(Codec):
    """The error of a number is at most 1/254 of the largest absolute value of its group."""

    @property
    def record_bytes(self) -> int:
        """Numbers of all groups, then their scales."""
        return int8_bytes(self.subspace.size)

    def _encode(self, atoms_NP: Tensor) -> Tensor:
        return to_int8(atoms_NP)

    def _decode(self, records: Tensor) -> Tensor:
        return from_int8(records, self.subspace.size)


class Int4Codec(Codec):
    """The error of a number is at most 1/14 of the largest absolute value of its group."""

    @property
    def record_bytes(self) -> int:
        """Numbers of all groups, then their scales."""
        return int4_bytes(self.subspace.size)

    def _encode(self, atoms_NP: Tensor) -> Tensor:
        return to_int4(atoms_NP)

    def _decode(self, records: Tensor) -> Tensor:
        return from_int4(records, self.subspace.size)
