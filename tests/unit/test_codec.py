from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrad.bank.codec import CODECS


@given(st.sampled_from(sorted(CODECS)), st.integers(1, 5), st.integers(1, 300), st.integers(0, 2**31))
def test_records_have_the_promised_size_and_decode_within_the_promised_error(
    name: str, rows: int, size: int, seed: int
) -> None:
    codec = CODECS[name]  # type: ignore[index]
    atoms = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    records = codec.encode(atoms)
    assert records.dtype == torch.uint8
    assert records.shape == (rows, codec.record_bytes(size))
    found = codec.decode(records, size)
    padded = torch.nn.functional.pad(atoms, (0, -size % 64)).reshape(rows, -1, 64).abs().amax(-1)
    half_step = (padded / 254).repeat_interleave(64, 1)[:, :size]
    bound = {"float32": torch.zeros_like(atoms), "bf16": atoms.abs() * 2**-8, "int8": half_step * 1.001}[name]
    assert ((found - atoms).abs() <= bound).all()


@pytest.mark.parametrize("name", sorted(CODECS))
def test_zeros_stay_zeros(name: str) -> None:
    codec = CODECS[name]  # type: ignore[index]
    assert codec.decode(codec.encode(torch.zeros(2, 70)), 70).abs().sum() == 0
