"""What every codec is: atoms [n, P] float32 to records [n, record_bytes] uint8 and back, for one subspace.

A codec depends on nothing but the subspace, which a bank's manifest has, so a bank explains itself. All records of a
subspace have the same number of bytes, so one atom is one ranged read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from regrad.errors import BankError
from regrad.models.subspace import Subspace, finite_rows


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
            raise BankError(f"atoms of {self.subspace.size} numbers are expected, found {tuple(atoms_NP.shape)}")
        finite = finite_rows(atoms_NP)
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise BankError(f"atom {row} has a number that is not finite; such a passage has no atom: quarantine it")
        if not len(atoms_NP):
            return torch.empty(0, self.record_bytes, dtype=torch.uint8, device=atoms_NP.device)
        return self._encode(atoms_NP.float())

    def decode(self, records: Tensor) -> Tensor:
        """Records [n, record_bytes] uint8 -> atoms [n, P] float32; raises `BankError` for another shape or type."""
        if records.dim() != 2 or records.shape[1] != self.record_bytes or records.dtype != torch.uint8:
            raise BankError(
                f"records of {self.record_bytes} bytes are expected, found {tuple(records.shape)} {records.dtype}"
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
