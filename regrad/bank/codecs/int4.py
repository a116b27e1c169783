"""int4: groups of 64 numbers share a bfloat16 scale, their largest absolute value / 7."""

from __future__ import annotations

from torch import Tensor

from regrad.bank.codecs.base import Codec
from regrad.bank.codecs.grouped import from_int4, int4_bytes, to_int4


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
