"""A learned merge: each gradient is weighted by how likely it is the asked one's, without reading any passage.

Logistic regression on other people's questions: is this passage about whom the question asks? Features are the
distance of its score from the best one's, its rank, its mean cosine with the other gradients, and its length over
their mean length; a gate without scores has the last two alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regrad.gradients.merging import Merge

_STEPS = 200
Example = tuple[Tensor, list[float], int]
"""Steps [K, P], scores, and which of them is right."""


def features(parts_KP: Tensor, scores: Sequence[float], with_scores: bool) -> Tensor:
    """What a gate sees of each gradient [K, F]."""
    unit_KP = torch.nn.functional.normalize(parts_KP, dim=1)
    count = len(parts_KP)
    cosines_K = ((unit_KP @ unit_KP.T).sum(1) - 1) / max(1, count - 1)
    norms_K = parts_KP.norm(dim=1)
    columns = [torch.ones(count), cosines_K, (norms_K / norms_K.mean()).log()]
    if with_scores:
        values = torch.tensor(scores)
        columns += [values - values.max(), torch.arange(count).float()]
    return torch.stack(columns, dim=1)


def train_gate(examples: Sequence[Example], with_scores: bool) -> Merge:
    """Fit a gate; returns the merge that weights each gradient by what it gives, the largest weight being one."""
    rows = [features(parts, scores, with_scores) for parts, scores, _ in examples]
    seen = torch.cat(rows)
    right = torch.cat(
        [(torch.arange(len(row)) == place).float() for row, (*_, place) in zip(rows, examples, strict=True)]
    )
    weights = torch.zeros(seen.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(seen @ weights, right)
        value = value + 1e-4 * weights.square().sum()
        value.backward()
        return value

    final = float(optimizer.step(loss))
    if not math.isfinite(final):
        raise ValueError("the gate's training diverged")
    fitted = weights.detach()

    def merge(parts_KP: Tensor, scores: Sequence[float]) -> Tensor:
        open_K = torch.sigmoid(features(parts_KP, scores, with_scores) @ fitted)
        return ((open_K / open_K.max())[:, None] * parts_KP).sum(0)

    return merge
