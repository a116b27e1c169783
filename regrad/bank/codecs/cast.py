"""float32 and bf16: each number in one floating-point type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from regrad.bank.codecs.base import Codec
from regrad.bank.codecs.grouped import read_as
from regrad.language_model.subspace import Subspace


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
