"""The two things that are compared: layers whose matrices are trained, and the constructed ones with their step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from regrad.theory import LinearAttention, run_stack, tokens_of
from studies.rag_gd.tasks import Tasks

_SCALE = 0.3
_STEPS = (1e-3, 30.0)
"""Between which the line search looks for the step."""


class TrainedLayer(nn.Module):
    """`depth` passes through one layer; the prediction is minus the query's last entry.

    Only the products W_K^T W_Q and P W_V matter, so these are what is trained: the same functions as with four square
    matrices, and fewer saddles on the way. Tokens begin with attending to what is like them (a part of the identity in
    W_K^T W_Q): from noise alone the layer stays on its first plateau for longer than a training here takes. That helps
    the claim that is tested.

    The sign is that of `regrad.theory.attention`, in which a stack can be gradient descent; a single layer learns
    either. With documents, tokens are (x, 0, y) of the context, (0, d, 0) of each document and (x, 0, 0) of the query:
    so W_z d d^T M x is within reach of the layer, with M in its W_Q and W_z in its W_V.
    """

    def __init__(self, size: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        match, carry = (torch.randn(size, size, generator=generator) * _SCALE / math.sqrt(size) for _ in range(2))
        self._same = torch.eye(size)
        # A stack is a polynomial of a high degree in its tokens: it has to begin next to doing nothing.
        self.match, self.carry = nn.Parameter(match + _SCALE * self._same), nn.Parameter(carry / depth**2)
        self._depth = depth

    def forward(self, tasks: Tasks) -> Tensor:
        """The prediction [B, 1]."""
        # The factor 1/N of the constructed P: without it a stack that has just begun explodes.
        layer = LinearAttention(self.match, self._same, self.carry, self._same / tasks.problem.examples)
        tokens = _tokens(tasks)
        for _ in range(self._depth):
            tokens = layer(tokens)
        return -tokens[:, -1, -1:]


def _tokens(tasks: Tasks) -> Tensor:
    if tasks.documents is None:
        return tokens_of(tasks.problem)
    problem = tasks.problem
    context = torch.cat([problem.x1, torch.zeros_like(problem.x1), problem.y], -1)
    documents = nn.functional.pad(tasks.documents, (problem.x1.shape[-1], 1))
    query = nn.functional.pad(problem.query1, (0, problem.x1.shape[-1] + 1))[:, None]
    return torch.cat([documents, context, query], 1)


def constructed(tasks: Tasks, depth: int) -> Callable[[Tasks], Tensor]:
    """The constructed stack [B, 1] with the step that is best on these tasks, by line search."""

    def error(logarithm: float) -> float:
        return float((run_stack(tasks.problem, math.exp(logarithm), depth) - tasks.target).square().mean())

    # The error may have several valleys at depth > 1, where a long step overshoots and returns: look everywhere first.
    low, high = (math.log(step) for step in _STEPS)
    grid = torch.linspace(low, high, 40).tolist()
    best = min(grid, key=error)
    width = grid[1] - grid[0]
    found = minimize_scalar(error, bounds=(best - width, best + width), method="bounded")
    step = math.exp(found.x)
    return lambda asked: run_stack(asked.problem, step, depth)
