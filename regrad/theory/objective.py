"""The unified linearised objective of both retrieval interfaces, and gradient descent on it by autograd.

    prediction   y = W1 x1 + W2 x2
    objective    L(W1, W2) = 1/(2N) sum_i || W1 x1_i + W2 x2_i - y_i ||^2        (arXiv 2605.26356, Sec. 3)

x1 is the query's feature and x2 the one that retrieval adds. The two interfaces differ in what x2 and the start W2 are:

    projection    x2 = D, the documents' feature      W2 = W1 W_d
    dot product   x2 = x1                             W2 = W_z (sum_j d_j d_j^T) M

Both weights are free in the objective: a step moves W1 and W2 apart, whatever W2 was made of. Nothing here knows
attention: it is what `regrad.theory.attention` is compared with.

Letters: B any batch dimensions, N context examples, A size of x1, C size of x2, O outputs, J documents, F their size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regrad.errors import TheoryError


@dataclass(frozen=True)
class LinearProblem:
    """N solved examples, a query, and the weights that the predictor starts with.

    x1 [B, N, A], x2 [B, N, C], y [B, N, O]; query1 [B, A], query2 [B, C]; weight1 [B, O, A], weight2 [B, O, C], the
    batch dimensions of which may be missing. Raises `TheoryError` if the shapes do not belong together.
    """

    x1: Tensor
    x2: Tensor
    y: Tensor
    query1: Tensor
    query2: Tensor
    weight1: Tensor
    weight2: Tensor

    def __post_init__(self) -> None:
        examples, outputs = self.y.shape[-2:]
        expected = {
            "x1": (examples, self.query1.shape[-1]),
            "x2": (examples, self.query2.shape[-1]),
            "weight1": (outputs, self.query1.shape[-1]),
            "weight2": (outputs, self.query2.shape[-1]),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape[-2:])
            if found != shape:
                raise TheoryError(
                    f"{name} must end with {shape} to fit the query and the targets, found {found}",
                    code="shapes",
                    name=name,
                    expected=shape,
                    found=found,
                )
        if not examples:
            raise TheoryError("a problem needs at least one context example, found none", code="no_examples")

    @property
    def examples(self) -> int:
        """N, the number of context examples."""
        return self.y.shape[-2]

    def start(self) -> Tensor:
        """The prediction at the query before any step [B, O]."""
        return predict(self, self.weight1, self.weight2)


def projection_weights(weight1: Tensor, document_weight: Tensor) -> tuple[Tensor, Tensor]:
    """W1 [O, A] and W2 = W1 W_d [O, C] of the projection interface, from W_d [A, C] (Sec. 3)."""
    return weight1, weight1 @ document_weight


def dot_product_weights(weight1: Tensor, value: Tensor, match: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
    """W1 and W2 = W_z (sum_j d_j d_j^T) M [B, O, A] of the dot-product interface (Sec. 3).

    `value` W_z [O, F]; `match` M [F, A], symmetric where query and documents share an encoder; `documents` [B, J, F].
    """
    return weight1, value @ (documents.transpose(-1, -2) @ documents) @ match


def descend(problem: LinearProblem, step: float, steps: int) -> tuple[Tensor, Tensor]:
    """W1 and W2 after `steps` steps of gradient descent on the objective, by autograd, for each batch member."""
    weight1, weight2 = problem.weight1.detach(), problem.weight2.detach()
    batch = problem.y.shape[:-2]
    # Each member of a batch needs weights of its own, or they would share a gradient.
    weight1 = weight1.expand(*batch, *weight1.shape[-2:])
    weight2 = weight2.expand(*batch, *weight2.shape[-2:])
    for _ in range(steps):
        leaves = [weight.clone().requires_grad_() for weight in (weight1, weight2)]
        gradient1, gradient2 = torch.autograd.grad(objective(problem, *leaves).sum(), leaves)
        weight1, weight2 = weight1 - step * gradient1, weight2 - step * gradient2
    return weight1, weight2


def objective(problem: LinearProblem, weight1: Tensor, weight2: Tensor) -> Tensor:
    """L at these weights [B]."""
    predicted = problem.x1 @ weight1.transpose(-1, -2) + problem.x2 @ weight2.transpose(-1, -2)
    return (predicted - problem.y).square().sum((-1, -2)) / (2 * problem.examples)


def predict(problem: LinearProblem, weight1: Tensor, weight2: Tensor) -> Tensor:
    """W1 x1 + W2 x2 at the query [B, O]."""
    return (weight1 @ problem.query1[..., None] + weight2 @ problem.query2[..., None])[..., 0]
