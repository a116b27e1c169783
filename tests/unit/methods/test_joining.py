"""LoRAs side by side in the rank, against the sum of their dense products."""

from __future__ import annotations

import torch
from torch import Tensor

from regrad.errors import MethodError
from regrad.models.subspace import Subspace
from regrad.training.lora.lora_artifact import check_joins, join
from tests.tools.refusals import refused

MODULES = (("m", 5, 7), ("n", 7, 3))
TARGET = Subspace(MODULES, 8, 2.0)
SMALL = Subspace(MODULES, 2, 16.0)
OTHER = Subspace(MODULES, 3, 0.5)


def numbers(subspace: Subspace, seed: int, *lead: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*lead, subspace.size, generator=generator, dtype=torch.float64)


def dense(subspace: Subspace, flat: Tensor, name: str) -> Tensor:
    tensors = subspace.unflatten(flat)
    return subspace.scaling * tensors[f"{name}.B"] @ tensors[f"{name}.A"]


def test_the_product_is_the_sum_of_the_products_at_their_own_scales() -> None:
    parts = [(SMALL, numbers(SMALL, 1)), (OTHER, numbers(OTHER, 2)), (SMALL, numbers(SMALL, 3))]
    joined = join(parts, TARGET)
    for name in ("m", "n"):
        expected = sum(dense(subspace, flat, name) for subspace, flat in parts)
        torch.testing.assert_close(dense(TARGET, joined, name), expected, rtol=1e-12, atol=1e-12)


def test_weights_scale_the_products() -> None:
    parts, weights = [(SMALL, numbers(SMALL, 1)), (OTHER, numbers(OTHER, 2))], [1.0, 0.25]
    joined = join(parts, TARGET, weights)
    expected = sum(w * dense(subspace, flat, "m") for (subspace, flat), w in zip(parts, weights, strict=True))
    torch.testing.assert_close(dense(TARGET, joined, "m"), expected, rtol=1e-12, atol=1e-12)


def test_many_rows_are_joined_with_one_and_a_module_may_be_missing() -> None:
    only_m = Subspace(MODULES[:1], 4, 1.0)
    rows, one = numbers(SMALL, 1, 6), numbers(only_m, 2)
    joined = join([(only_m, one), (SMALL, rows)], TARGET)
    assert joined.shape == (6, TARGET.size)
    torch.testing.assert_close(
        dense(TARGET, joined[4], "m"), dense(only_m, one, "m") + dense(SMALL, rows[4], "m"), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(dense(TARGET, joined[4], "n"), dense(SMALL, rows[4], "n"), rtol=1e-12, atol=1e-12)


def test_gradients_reach_what_is_joined() -> None:
    rows = numbers(SMALL, 1, 2).requires_grad_()
    join([(SMALL, rows)], TARGET).square().sum().backward()
    assert rows.grad is not None
    assert bool((rows.grad != 0).all())


def test_what_does_not_fit_says_what_to_do() -> None:
    with refused(MethodError, "rank_too_low", ranks=[3, 3, 3], rank=8):
        check_joins([OTHER] * 3, TARGET)
    with refused(MethodError, "outside_subspace", module="x"):
        check_joins([Subspace((("x", 5, 7),), 2, 1.0)], TARGET)
    with refused(MethodError, "outside_subspace", module="m"):
        check_joins([Subspace((("m", 5, 8),), 2, 1.0)], TARGET)
