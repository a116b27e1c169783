"""Random problems of both interfaces in float64, to check the identity on."""

from __future__ import annotations

import torch
from torch import Tensor

from regrad.theory.objective import LinearProblem, dot_product_weights, projection_weights

INTERFACES = ("projection", "dot product")
"""The two retrieval interfaces, as `random_problem` names them."""


def random_problem(interface: str, seed: int) -> tuple[LinearProblem, float]:
    """A problem of random sizes, and a step for it that is neither next to nothing nor far too long."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs, documents_size, outputs, examples, documents = (
        int(torch.randint(1, high, (1,), generator=generator)) for high in (9, 9, 4, 13, 6)
    )
    step = float(0.01 + 0.3 * torch.rand(1, generator=generator, dtype=torch.float64))
    if interface == "projection":
        x1, x2 = normal(examples + 1, inputs), normal(examples + 1, documents_size)
        weights = projection_weights(normal(outputs, inputs), normal(inputs, documents_size))
    else:
        x1 = x2 = normal(examples + 1, inputs)
        encoder = normal(documents_size, inputs)
        found = normal(documents, documents_size) @ encoder
        weights = dot_product_weights(
            normal(outputs, inputs), normal(outputs, inputs) / 8, encoder.T @ encoder / 8, found / documents_size
        )
    return LinearProblem(x1[:-1], x2[:-1], normal(examples, outputs), x1[-1], x2[-1], *weights), step
