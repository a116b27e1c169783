"""What several LoRAs do together, against the sum of their dense products."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regrad.models.subspace import Subspace
from regrad.training.lora.lora_artifact import join

MODULES = (("m", 5, 7), ("n", 7, 3))
SMALL = Subspace(MODULES, 2, 16.0)
OTHER = Subspace(MODULES, 3, 0.5)
ONLY_M = Subspace(MODULES[:1], 4, 16.0)


def numbers(subspace: Subspace, seed: int, *lead: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*lead, subspace.size, generator=generator, dtype=torch.float64)


def dense(subspace: Subspace, flat: Tensor, name: str) -> Tensor | float:
    tensors = subspace.unflatten(flat)
    return subspace.scaling * tensors[f"{name}.B"] @ tensors[f"{name}.A"] if f"{name}.A" in tensors else 0.0


def together(joined: Mapping[Subspace, Tensor], name: str) -> Tensor | float:
    return sum((dense(*pair, name) for pair in joined.items()), 0.0)


def test_the_product_is_the_sum_of_the_products_at_their_own_scales() -> None:
    parts = [(SMALL, numbers(SMALL, 1)), (OTHER, numbers(OTHER, 2)), (SMALL, numbers(SMALL, 3))]
    joined = join([*parts, (ONLY_M, numbers(ONLY_M, 4))])
    assert set(joined) == {Subspace(MODULES, 4, 16.0), OTHER, ONLY_M}, "alike ones share a subspace"
    for name in ("m", "n"):
        expected = sum(dense(subspace, flat, name) for subspace, flat in [*parts, (ONLY_M, numbers(ONLY_M, 4))])
        torch.testing.assert_close(together(joined, name), expected, rtol=1e-12, atol=1e-12)


def test_weights_scale_the_products() -> None:
    parts, weights = [(SMALL, numbers(SMALL, 1)), (SMALL, numbers(SMALL, 2)), (OTHER, numbers(OTHER, 3))], [1, 0.25, 2]
    expected = sum(w * dense(subspace, flat, "m") for (subspace, flat), w in zip(parts, weights, strict=True))
    torch.testing.assert_close(together(join(parts, weights), "m"), expected, rtol=1e-12, atol=1e-12)


def test_many_rows_are_joined_with_one() -> None:
    rows, one = numbers(SMALL, 1, 6), numbers(SMALL, 2)
    ((subspace, joined),) = join([(SMALL, one), (SMALL, rows)]).items()
    assert joined.shape == (6, subspace.size)
    expected = dense(SMALL, one, "m") + dense(SMALL, rows[4], "m")
    torch.testing.assert_close(dense(subspace, joined[4], "m"), expected, rtol=1e-12, atol=1e-12)


def test_gradients_reach_what_is_joined() -> None:
    rows, one = numbers(SMALL, 1, 2).requires_grad_(), numbers(SMALL, 2)
    ((_, joined),) = join([(SMALL, one), (SMALL, rows)]).items()
    joined.square().sum().backward()
    assert rows.grad is not None
    torch.testing.assert_close(rows.grad, 2 * rows.detach())
