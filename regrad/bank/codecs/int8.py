"""int8: groups of 64 numbers share a float32 scale, their largest absolute value / 127."""

from __future__ import annotations

from torch import Tensor

from regrad.bank.codecs.base import Codec
from regrad.bank.codecs.grouped import from_int8, int8_bytes, to_int8


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
