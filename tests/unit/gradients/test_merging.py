"""Merging atoms: what each way of making one vector of several must do, whatever the numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regrad.gradients.merging import MERGES


@pytest.fixture
def parts() -> Tensor:
    return torch.randn(4, 50, generator=torch.Generator().manual_seed(3))


SCORES = [7.5, 4.5, 4.0, 1.0]


@pytest.mark.parametrize("name", sorted(set(MERGES) - {"trimmed"}))
def test_one_part_is_its_own_merge(name: str, parts: Tensor) -> None:
    assert torch.allclose(MERGES[name](parts[:1], SCORES[:1]), parts[0], atol=1e-6)


@pytest.mark.parametrize("name", sorted(MERGES))
def test_parts_and_scores_together_may_come_in_any_order(name: str, parts: Tensor) -> None:
    order = [2, 0, 3, 1]
    again = MERGES[name](parts[order], [SCORES[i] for i in order])
    assert again.shape == (50,)
    assert torch.allclose(again, MERGES[name](parts, SCORES), atol=1e-5)


def test_equal_scores_give_the_sum_where_the_best_counts_one(parts: Tensor) -> None:
    for name in ("relative", "proportional"):
        assert torch.allclose(MERGES[name](parts, [2.0] * 4), parts.sum(0), atol=1e-5)
    assert torch.allclose(MERGES["softmax"](parts, [2.0] * 4), parts.mean(0), atol=1e-5)


def test_weights_by_score_fall_with_the_score(parts: Tensor) -> None:
    basis = torch.eye(4)
    for name in ("decayed", "softmax", "relative", "proportional"):
        weights = MERGES[name](basis, SCORES)
        assert (weights.diff() < 0).all(), name
    assert MERGES["relative"](basis, SCORES)[0] == 1.0
    assert float(MERGES["softmax"](basis, SCORES).sum()) == pytest.approx(1.0)
    assert MERGES["first"](basis, SCORES).tolist() == [1, 0, 0, 0]


def test_huge_scores_and_scores_of_zero_stay_finite(parts: Tensor) -> None:
    for name, merge in MERGES.items():
        for scores in ([1e6, 1e5, 1.0, 0.0], [0.0] * 4, [-3.0, -2.0, -1.0, -9.0]):
            assert torch.isfinite(merge(parts, scores)).all(), name


def test_consensus_drops_the_minority_sign() -> None:
    parts = torch.tensor([[3.0, 1.0], [-1.0, 1.0], [1.0, -5.0]])
    assert MERGES["consensus"](parts, [1.0, 1.0, 1.0]).tolist() == [4.0, -5.0]


def test_trimmed_keeps_the_largest_fifth_of_each() -> None:
    parts = torch.arange(1.0, 11.0).repeat(2, 1)
    parts[1] *= -1
    assert MERGES["trimmed"](parts[:1], [1.0]).tolist() == [0.0] * 8 + [9.0, 10.0]
    assert MERGES["trimmed"](parts, [1.0, 1.0]).abs().sum() == 0


def test_largest_takes_each_number_from_one_part() -> None:
    parts = torch.tensor([[3.0, 1.0], [-4.0, 0.5]])
    assert MERGES["largest"](parts, [1.0, 1.0]).tolist() == [-4.0, 1.0]


def test_orthogonal_counts_what_is_shared_once(parts: Tensor) -> None:
    twice = torch.stack([parts[0], parts[0], 2 * parts[0]])
    assert torch.allclose(MERGES["orthogonal"](twice, [3.0, 2.0, 1.0]), parts[0], atol=1e-5)
    at_right_angles = torch.linalg.qr(parts.T).Q.T
    assert torch.allclose(MERGES["orthogonal"](at_right_angles, SCORES), at_right_angles.sum(0), atol=1e-5)
