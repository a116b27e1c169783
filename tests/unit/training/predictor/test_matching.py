"""The loss of direction and norm, in both spaces, against what it says when every matrix is formed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regrad.models.subspace import Subspace
from regrad.training.predictor.config import UpdateSpace
from regrad.training.predictor.matching import likeness, target_of

UPDATES = 3
SUBSPACE = Subspace((("block.0.q", 5, 7), ("block.0.v", 5, 3), ("block.1.q", 6, 6)), 2, 1.5)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrices(subspace: Subspace, vector: Tensor) -> list[Tensor]:
    """The products [out, in] of one LoRA."""
    tensors = subspace.unflatten(vector)
    return [subspace.scaling * tensors[f"{name}.B"] @ tensors[f"{name}.A"] for name, _, _ in subspace.modules]


def explicit_loss(predicted: list[Tensor], target: list[Tensor], weight: float) -> Tensor:
    """The paper's formula, projection by projection."""
    total = torch.zeros((), dtype=torch.float64)
    for own, wanted in zip(predicted, target, strict=True):
        cosine = (own * wanted).sum() / (own.norm() * wanted.norm())
        total = total + 1 - cosine + weight * (own.norm() / wanted.norm()).log().abs()
    return total


def vectors(subspace: Subspace, flat: Tensor) -> list[Tensor]:
    """The numbers of each projection's two factors."""
    tensors = subspace.unflatten(flat)
    return [
        torch.cat([tensors[f"{name}.A"].flatten(), tensors[f"{name}.B"].flatten()]) for name, *_ in subspace.modules
    ]


def test_the_loss_of_products_is_that_of_the_matrices_that_are_never_formed() -> None:
    start, ends = drawn(1, SUBSPACE.size), drawn(2, UPDATES, SUBSPACE.size)
    predicted = drawn(3, UPDATES, SUBSPACE.size).requires_grad_()
    target = target_of(SUBSPACE, start, ends, "products")
    loss_U = likeness((SUBSPACE, predicted), target, "products").loss(0.1)
    differences = [
        [end - begin for end, begin in zip(matrices(SUBSPACE, row), matrices(SUBSPACE, start), strict=True)]
        for row in ends
    ]
    rows = zip(predicted, differences, strict=True)
    expected_U = torch.stack([explicit_loss(matrices(SUBSPACE, row), wanted, 0.1) for row, wanted in rows])
    torch.testing.assert_close(loss_U, expected_U, rtol=1e-12, atol=1e-12)
    (found,) = torch.autograd.grad(loss_U.sum(), predicted, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected_U.sum(), predicted)[0], rtol=1e-10, atol=1e-10)


def test_the_loss_of_factors_is_that_of_their_numbers() -> None:
    start, ends, predicted = drawn(1, SUBSPACE.size), drawn(2, UPDATES, SUBSPACE.size), drawn(3, UPDATES, SUBSPACE.size)
    found = likeness((SUBSPACE, predicted), target_of(SUBSPACE, start, ends, "factors"), "factors").loss(0.3)
    rows = zip(predicted, ends - start, strict=True)
    expected = [explicit_loss(vectors(SUBSPACE, row), vectors(SUBSPACE, wanted), 0.3) for row, wanted in rows]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("space", ["factors", "products"])
def test_the_right_update_costs_nothing_and_a_longer_one_only_its_log_norm(space: UpdateSpace) -> None:
    start, ends = drawn(1, SUBSPACE.size), drawn(2, UPDATES, SUBSPACE.size)
    target = target_of(SUBSPACE, start, ends, space)
    assert likeness(target, target, space).loss(0.1).abs().max() < 1e-12
    subspace, vector = target
    longer = Subspace(subspace.modules, subspace.rank, 4 * subspace.scaling), vector
    found = likeness(longer, target, "products")
    torch.testing.assert_close(found.log_ratio, torch.full_like(found.log_ratio, 4.0).log())
    torch.testing.assert_close(found.cosine, torch.ones_like(found.cosine))


def test_a_small_step_from_a_large_adapter_keeps_its_norm_in_single_precision() -> None:
    """A step of 1e-4 of W0: of two float32 products of the size of W0 little of its norm would be left."""
    start, step = drawn(1, SUBSPACE.size), 1e-4 * drawn(2, SUBSPACE.size)
    exact, single = start.float().double(), (start + step).float()
    subspace, vector = target_of(SUBSPACE, start.float(), single[None], "products")
    norms = likeness((subspace, vector), (subspace, vector), "products")
    wanted = [b - a for a, b in zip(matrices(SUBSPACE, exact), matrices(SUBSPACE, single.double()), strict=True)]
    for found, right in zip(matrices(subspace, vector[0].double()), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-9)
    assert bool(norms.moved.all())


def test_a_projection_that_the_steps_leave_alone_counts_for_nothing() -> None:
    start = drawn(1, SUBSPACE.size)
    predicted = drawn(3, 1, SUBSPACE.size).requires_grad_()
    loss = likeness((SUBSPACE, predicted), target_of(SUBSPACE, start, start[None], "factors"), "factors").loss(0.1)
    assert float(loss.detach()) == 0
    (gradient,) = torch.autograd.grad(loss.sum(), predicted)
    assert bool((gradient == 0).all())
