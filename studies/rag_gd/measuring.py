"""Training on fresh tasks, and how far two predictors are apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from studies.rag_gd.tasks import Tasks

Predictor = Callable[[Tasks], Tensor]


@dataclass(frozen=True)
class Compared:
    """A trained predictor beside the constructed one, over test tasks.

    `difference` is the mean of |trained - constructed|, `relative` its root mean square over that of the constructed
    predictions (1: as far as predicting 0 would be). Sensitivities are the derivatives of a prediction by the test
    input: the mean of their cosine, the mean distance, and that distance over the mean length of the constructed one.
    `trained_error` and `constructed_error` are mean squared errors over the mean square of the targets.
    """

    difference: float
    relative: float
    cosine: float
    distance: float
    relative_distance: float
    trained_error: float
    constructed_error: float


def train(model: nn.Module, draw: Callable[[], Tasks], steps: int, learning_rate: float) -> None:
    """Adam on the squared error of fresh tasks; gradients are clipped, and those that are not finite skipped."""
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    for _ in range(steps):
        tasks = draw()
        optimizer.zero_grad()
        (model(tasks) - tasks.target).square().mean().backward()
        # A stack is steep far from where it should be: one bad batch must not throw it out.
        if nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():
            optimizer.step()
        schedule.step()


def compare(trained: Predictor, constructed: Predictor, tasks: Tasks) -> Compared:
    """Over these tasks."""
    (found, found_slope), (expected, expected_slope) = (_with_slopes(one, tasks) for one in (trained, constructed))
    apart = found - expected
    distance = (found_slope - expected_slope).norm(dim=-1).mean()
    power = tasks.target.square().mean()
    values = (
        apart.abs().mean(),
        apart.square().mean().sqrt() / expected.square().mean().sqrt(),
        nn.functional.cosine_similarity(found_slope, expected_slope).mean(),
        distance,
        distance / expected_slope.norm(dim=-1).mean(),
        (found - tasks.target).square().mean() / power,
        (expected - tasks.target).square().mean() / power,
    )
    return Compared(*(float(value) for value in values))


def _with_slopes(predictor: Predictor, tasks: Tasks) -> tuple[Tensor, Tensor]:
    query = tasks.problem.query1.detach().clone().requires_grad_()
    predicted = predictor(tasks.at(query))
    (slopes,) = torch.autograd.grad(predicted.sum(), query)
    return predicted.detach(), slopes
