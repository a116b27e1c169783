"""Integers with a scale for each group of 64 numbers: what int8 and int4 are, and what the low-rank codec is made of.

A group whose scale would be below the smallest normal number is stored as zeros: what is lost is below 1.5e-36.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
