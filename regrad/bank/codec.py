"""How an atom is stored. A codec turns atoms [n, P] float32 into records [n, bytes] and back; its error is known.

A new codec is one class and one line in `CODECS`.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from regrad.config import CodecName

_GROUP = 64


class Codec(Protocol):
    """Encode and decode atoms; every record of one subspace has the same number of bytes."""

    def record_bytes(self, size: int) -> int:
        """Bytes of one record of an atom of `size` numbers."""
        ...

    def encode(self, atoms_NP: Tensor) -> Tensor:
        """Atoms [n, P] float32 -> records [n, bytes] uint8."""
        ...

    def decode(self, records: Tensor, size: int) -> Tensor:
        """Records [n, bytes] uint8 -> atoms [n, P] float32."""
        ...


class CastCodec:
    """Each number in one floating-point type: float32 is exact, bf16 has a relative error of at most 2^-8."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def record_bytes(self, size: int) -> int:
        return size * self._dtype.itemsize

    def encode(self, atoms_NP: Tensor) -> Tensor:
        return atoms_NP.to(self._dtype).contiguous().view(torch.uint8)

    def decode(self, records: Tensor, size: int) -> Tensor:
        return records.contiguous().view(self._dtype).float()


class Int8Codec:
    """Groups of 64 numbers share a float32 scale (absmax / 127): the error is at most half a step of the group."""

    def record_bytes(self, size: int) -> int:
        groups = -(-size // _GROUP)
        return groups * (_GROUP + 4)

    def encode(self, atoms_NP: Tensor) -> Tensor:
        rows, size = atoms_NP.shape
        grouped = F.pad(atoms_NP, (0, -size % _GROUP)).reshape(rows, -1, _GROUP)
        scales = grouped.abs().amax(-1, keepdim=True) / 127
        quantised = (grouped / scales.clamp_min(torch.finfo(torch.float32).tiny)).round().clamp(-127, 127)
        numbers = quantised.to(torch.int8).reshape(rows, -1).view(torch.uint8)
        return torch.cat([numbers, scales.reshape(rows, -1).contiguous().view(torch.uint8)], dim=1)

    def decode(self, records: Tensor, size: int) -> Tensor:
        rows, groups = records.shape[0], -(-size // _GROUP)
        numbers = records[:, : groups * _GROUP].contiguous().view(torch.int8).reshape(rows, groups, _GROUP)
        scales = records[:, groups * _GROUP :].contiguous().view(torch.float32)
        return (numbers.float() * scales.unsqueeze(-1)).reshape(rows, -1)[:, :size]


CODECS: dict[CodecName, Codec] = {
    "float32": CastCodec(torch.float32),
    "bf16": CastCodec(torch.bfloat16),
    "int8": Int8Codec(),
}
