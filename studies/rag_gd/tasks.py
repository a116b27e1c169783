"""Synthetic tasks of both interfaces: teacher, solved examples, documents, query (arXiv 2605.26356, Sec. 4, App. C).

What the paper leaves open is chosen here. Projection: every example and the query has documents of its own,
d ~ U(-1/2, 1/2)^n, and its feature D is their sum. Dot product: the documents belong to the task; W_z and M are drawn
once for a seed, and the teacher is W1 ~ N(0, I) beside the W2 = W_z (sum_j d_j d_j^T) M that is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regrad.theory import LinearProblem, dot_product_weights
from studies.rag_gd.config import RagGdConfig


@dataclass(frozen=True)
class Tasks:
    """B tasks: the problem, what is right at the query [B, 1], and the documents [B, J, n] that are tokens, if any."""

    problem: LinearProblem
    target: Tensor
    documents: Tensor | None = None

    def at(self, query: Tensor) -> Tasks:
        """The same tasks asked at other inputs [B, n]; the target is not theirs."""
        second = query if self.documents is not None else self.problem.query2
        return replace(self, problem=replace(self.problem, query1=query, query2=second))


class Projection:
    """x2 = D, and both starts are 0."""

    def __init__(self, config: RagGdConfig, documents: int) -> None:
        self._config = config
        self._documents = documents

    def draw(self, count: int, generator: torch.Generator, reach: float = 1.0) -> Tasks:
        """`count` tasks, asked at U(-reach, reach)."""
        size, tokens = self._config.size, self._config.examples + 1
        x1 = _uniform(generator, count, tokens, size)
        x1[:, -1] *= reach
        x2 = _uniform(generator, count, tokens, self._documents, size).sum(2) / 2
        weight1, weight2 = (torch.randn(count, 1, size, generator=generator) for _ in range(2))
        y = x1 @ weight1.mT + x2 @ weight2.mT
        nothing = torch.zeros(1, size)
        problem = LinearProblem(x1[:, :-1], x2[:, :-1], y[:, :-1], x1[:, -1], x2[:, -1], nothing, nothing)
        return Tasks(problem, y[:, -1])


class DotProduct:
    """x2 = x1; the constructed layer starts with the W2 that the documents make, the trained one reads documents."""

    def __init__(self, config: RagGdConfig, documents: int, seed: int) -> None:
        self._config = config
        self._documents = documents
        fixed = torch.Generator().manual_seed(seed)
        self._value = config.spread * torch.randn(1, config.size, generator=fixed)
        self._match = config.spread * torch.randn(config.size, config.size, generator=fixed)

    def draw(self, count: int, generator: torch.Generator, reach: float = 1.0) -> Tasks:
        """`count` tasks, asked at U(-reach, reach)."""
        size, tokens = self._config.size, self._config.examples + 1
        x = _uniform(generator, count, tokens, size)
        x[:, -1] *= reach
        documents = _uniform(generator, count, self._documents, size) / 2
        start, made = dot_product_weights(torch.zeros(1, size), self._value, self._match, documents)
        teacher = torch.randn(count, 1, size, generator=generator)
        y = x @ (teacher + made).mT
        problem = LinearProblem(x[:, :-1], x[:, :-1], y[:, :-1], x[:, -1], x[:, -1], start, made)
        return Tasks(problem, y[:, -1], documents)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=generator) - 1
