"""Codecs: records of the promised size, errors of the promised size, and no atom that breaks them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regrad.bank.codecs import CODECS, LowRankCodec, codec_for
from regrad.errors import BankError
from regrad.models.subspace import Subspace
from tests.tools.refusals import refused

GROUP = 64
NAMES = sorted(CODECS)
LOW_RANK = [name for name in NAMES if name.startswith("lowrank")]
LARGE = Subspace((("m", 128, 384), ("n", 384, 128)), 32, 2.0)
subspaces = st.builds(
    lambda rank, sides: Subspace(tuple((f"m{i}", a, b) for i, (a, b) in enumerate(sides)), rank, 2.0),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3),
)


def random_atoms(rows: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def largest_of_group(atoms: Tensor) -> Tensor:
    """The largest absolute value in each number's group of 64."""
    rows, size = atoms.shape
    padded = torch.nn.functional.pad(atoms, (0, -size % GROUP)).reshape(rows, -1, GROUP).abs().amax(-1)
    return padded.repeat_interleave(GROUP, 1)[:, :size]


ERRORS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda atoms: 0 * atoms,
    "bf16": lambda atoms: atoms.abs() / 2**8,
    "int8": lambda atoms: largest_of_group(atoms) / 254,
    "int4": lambda atoms: largest_of_group(atoms) / 14,
}
"""How much each number may be off, for every codec that promises that. Low rank has a test of its own."""


def test_every_codec_has_a_promise_that_is_tried_here() -> None:
    assert set(NAMES) == {*ERRORS, *LOW_RANK}


@given(st.sampled_from(NAMES), subspaces, st.integers(0, 4), st.integers(0, 2**31))
@settings(deadline=None)
def test_every_record_has_the_promised_bytes_and_decodes_to_an_atom(
    name: str, subspace: Subspace, rows: int, seed: int
) -> None:
    codec, atoms = codec_for(name, subspace), random_atoms(rows, subspace.size, seed)
    records = codec.encode(atoms)
    assert records.dtype == torch.uint8
    assert records.shape == (rows, codec.record_bytes)
    found = codec.decode(records)
    assert found.dtype == torch.float32
    assert found.shape == atoms.shape
    torch.testing.assert_close(codec.add_decoded(records, torch.ones(subspace.size)), 1 + found.sum(0))
    torch.testing.assert_close(codec.sum(list(records)), found.sum(0))
    assert codec.decode(records).equal(found), "adding up has changed a record"


@given(
    st.sampled_from(sorted(ERRORS)),
    subspaces,
    st.integers(0, 2**31),
    st.floats(-30, 30),
)
@settings(deadline=None)
def test_each_number_is_within_the_promised_error_at_any_scale(
    name: str, subspace: Subspace, seed: int, exponent: float
) -> None:
    codec, atoms = codec_for(name, subspace), random_atoms(3, subspace.size, seed) * 10**exponent
    # A thousandth more for float32's own rounding.
    assert ((codec.decode(codec.encode(atoms)) - atoms).abs() <= 1.001 * ERRORS[name](atoms)).all()


@given(st.sampled_from(LOW_RANK), subspaces, st.integers(0, 2**31), st.sampled_from([1e-25, 1.0, 1e25]))
@settings(deadline=None)
def test_low_rank_loses_what_the_best_matrix_of_its_rank_loses_and_a_little(
    name: str, subspace: Subspace, seed: int, scale: float
) -> None:
    codec = codec_for(name, subspace)
    assert isinstance(codec, LowRankCodec)
    atoms = random_atoms(2, subspace.size, seed)
    found = subspace.unflatten(codec.decode(codec.encode(atoms * scale)) / scale)
    missed, most = torch.zeros(2), torch.zeros(2)
    for tensor_name, tensor in subspace.unflatten(atoms).items():
        values = torch.linalg.svdvals(tensor)
        missed += (found[tensor_name] - tensor).square().sum((-2, -1))
        # int4 is off by at most 1/14 of the largest of a group, int8 by 1/254: what 64 such numbers add up to, at
        # worst, is (8/14)^2 of what was kept if a group holds one large number; groups span tensors, hence the sum.
        most += values[..., codec.rank :].square().sum(-1)
    assert (missed <= most + 0.35 * atoms.square().sum(1)).all()


@pytest.mark.parametrize("name", LOW_RANK)
def test_a_gradient_of_low_rank_keeps_its_direction(name: str) -> None:
    codec, generator = codec_for(name, LARGE), torch.Generator().manual_seed(0)
    tensors = {
        key: torch.randn(3, rows, 4, generator=generator) @ torch.randn(3, 4, columns, generator=generator)
        for key, (rows, columns) in LARGE.shapes.items()
    }
    atoms = LARGE.flatten(tensors)
    error = (codec.decode(codec.encode(atoms)) - atoms).norm(dim=1) / atoms.norm(dim=1)
    # The matrix fits the rank (12 and 6), so that only int4's rounding is left: 0.11 for a normal distribution.
    assert (error < 0.15).all()


@pytest.mark.parametrize(("name", "ratio"), [("int8", 3.7), ("int4", 7.5), ("lowrank16", 16), ("lowrank32", 32)])
def test_a_codec_is_as_small_as_its_name_says(name: str, ratio: float) -> None:
    assert codec_for(name, LARGE).record_bytes * ratio <= 4 * LARGE.size


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros(name: str) -> None:
    codec = codec_for(name, LARGE)
    assert codec.decode(codec.encode(torch.zeros(2, LARGE.size))).abs().sum() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-38, 1e-36, 1e35])
def test_the_smallest_and_the_largest_numbers_stay_near_what_they_were(name: str, scale: float) -> None:
    # Below about 1e-36 an integer codec may give zero, but never something larger than what was there.
    codec, atoms = codec_for(name, LARGE), random_atoms(2, LARGE.size).clamp(-5, 5) * scale
    found = codec.decode(codec.encode(atoms))
    assert torch.isfinite(found).all()
    assert (found.double() - atoms).norm() <= atoms.double().norm()


@pytest.mark.parametrize("name", NAMES)
def test_an_atom_does_not_depend_on_its_neighbours(name: str) -> None:
    codec, atoms = codec_for(name, LARGE), random_atoms(3, LARGE.size)
    atoms[1] *= 1e20
    together = codec.decode(codec.encode(atoms))
    torch.testing.assert_close(together[2:], codec.decode(codec.encode(atoms[2:])))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_atom_that_is_not_finite_is_refused(name: str, value: float) -> None:
    atoms = random_atoms(3, LARGE.size)
    atoms[1, 70] = value
    with refused(BankError, "not_finite", row=1):
        codec_for(name, LARGE).encode(atoms)


@pytest.mark.parametrize("name", NAMES)
def test_atoms_and_records_of_another_subspace_are_refused(name: str) -> None:
    codec = codec_for(name, LARGE)
    with refused(BankError, "wrong_shape", expected=LARGE.size, found=[1, LARGE.size + 1]):
        codec.encode(torch.zeros(1, LARGE.size + 1))
    with refused(BankError, "wrong_shape", expected=codec.record_bytes):
        codec.decode(torch.zeros(1, codec.record_bytes - 1, dtype=torch.uint8))


def test_the_bytes_of_int4_are_those_of_the_document() -> None:
    # 7 * 0.5 is the largest, so the scale is 0.5 (bfloat16 0x3f00); the first number is the low half of the first byte.
    atom = torch.zeros(1, 8)
    atom[0, :4] = torch.tensor([3.5, -0.5, 0.6, -3.5])
    record = codec_for("int4", Subspace((("m", 3, 5),), 1, 1.0)).encode(atom)[0].tolist()
    assert record == [0x7F, 0x19, *[0x88] * 30, 0x00, 0x3F]


def test_an_unknown_codec_is_an_error_that_names_the_nearest() -> None:
    with refused(BankError, "unknown_name", name="lowrank61", near="lowrank16"):
        codec_for("lowrank61", LARGE)
