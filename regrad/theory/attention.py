"""Linear self-attention with constructed weights: one layer is one gradient step, K layers are K steps.

    e_j <- e_j + P V K^T q_j,    V = W_V E,  K = W_K E,  q_j = W_Q e_j,    no softmax, no bias, one head
    tokens e_i = (x1_i, x2_i, y_i) of the context, and (x1, x2, 0) of the query, which is the last

**One step** (arXiv 2605.26356, Sec. 3 and App. A). With W_K = W_Q = diag(I, I, 0), W_V = [0; 0; (W1, W2, -I)] and
P = diag(0, 0, -(step/N) I), the query's last entry becomes

    -(step/N) sum_i r_i (x1_i . x1 + x2_i . x2) = dW1 x1 + dW2 x2,    r_i = W1 x1_i + W2 x2_i - y_i,

the shift of its prediction. That needs keys and values of **the context tokens only**, which the paper does not say. A
query that attends to itself adds -(step/N) (W1 x1 + W2 x2) (|x1|^2 + |x2|^2), which is nothing only where its own
prediction is 0, as with W1 = W2 = 0.

**K steps.** The paper adds up K shifts and leaves open what a layer must hand on. Step t + 1 needs the residuals after
step t, r_i + d_i, where d_i is the shift at context token i. That token is updated by the same layer, so its last entry
becomes y_i + d_i, and the same W_V then reads r_i - d_i: the wrong sign, and from the second layer on not a gradient
step. Leaving the context tokens as they are repeats the first step, K times. What works is a layer that *subtracts* the
shift: with P = diag(0, 0, +(step/N) I) the entry becomes y_i - d_i, a target that is lower by what the predictor has
already gained, and the same W_V reads r_i + d_i. The query's entry is then minus its shift, so the prediction is

    y(K) = W1 x1 + W2 x2 - (last entry of the query after K layers).

All K layers have the same weights. Here, too, the query must not attend to itself, from the second layer on even if
W1 = W2 = 0, as its last entry is no longer 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regrad.errors import TheoryError
from regrad.theory.objective import LinearProblem


@dataclass(frozen=True)
class LinearAttention:
    """One layer: four matrices [B, E, E] of tokens of size E, the batch dimensions of which may be missing."""

    query: Tensor
    key: Tensor
    value: Tensor
    projection: Tensor

    def __call__(self, tokens_TE: Tensor, *, query_attends_itself: bool = False) -> Tensor:
        """All tokens [B, T, E] after the layer. Keys and values are every token but the last, which is the query's."""
        sources = tokens_TE if query_attends_itself else tokens_TE[..., :-1, :]
        queries = tokens_TE @ self.query.transpose(-1, -2)
        keys = sources @ self.key.transpose(-1, -2)
        values = sources @ self.value.transpose(-1, -2)
        # Without a softmax the products may be taken in either order: keys with values first is linear in T.
        attended = queries @ (keys.transpose(-1, -2) @ values)
        return tokens_TE + attended @ self.projection.transpose(-1, -2)


def tokens_of(problem: LinearProblem) -> Tensor:
    """(x1_i, x2_i, y_i) of the context and (x1, x2, 0) of the query, below each other [B, N + 1, A + C + O]."""
    context = torch.cat([problem.x1, problem.x2, problem.y], -1)
    nothing = problem.y.new_zeros(*problem.query1.shape[:-1], problem.y.shape[-1])
    query = torch.cat([problem.query1, problem.query2, nothing], -1)
    return torch.cat([context, query[..., None, :]], -2)


def one_step_layer(problem: LinearProblem, step: float) -> LinearAttention:
    """The paper's layer: it adds the shift of one gradient step to the query's last entry."""
    return _layer(problem, -step)


def repeatable_layer(problem: LinearProblem, step: float) -> LinearAttention:
    """The layer that can be stacked: it subtracts the shift from every token's last entry."""
    return _layer(problem, step)


def _layer(problem: LinearProblem, signed_step: float) -> LinearAttention:
    outputs = problem.y.shape[-1]
    inputs = problem.query1.shape[-1] + problem.query2.shape[-1]
    size = inputs + outputs
    match = problem.y.new_zeros(size, size)
    match[:inputs, :inputs] = torch.eye(inputs, dtype=match.dtype, device=match.device)
    batch = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
        problem.weight1.shape[:-2], problem.weight2.shape[:-2]
    )
    value = problem.y.new_zeros(*batch, size, size)
    value[..., inputs:, : problem.query1.shape[-1]] = problem.weight1
    value[..., inputs:, problem.query1.shape[-1] : inputs] = problem.weight2
    target = torch.eye(outputs, dtype=match.dtype, device=match.device)
    value[..., inputs:, inputs:] = -target
    projection = torch.zeros_like(match)
    projection[inputs:, inputs:] = signed_step / problem.examples * target
    return LinearAttention(match, match, value, projection)


def run_stack(problem: LinearProblem, step: float, depth: int) -> Tensor:
    """The prediction at the query after `depth` layers of the same weights [B, O]: that after as many gradient steps.

    Raises `TheoryError` for a depth below 1.
    """
    if depth < 1:
        raise TheoryError(f"a stack needs at least one layer, found {depth}", code="depth", found=depth)
    layer = repeatable_layer(problem, step)
    tokens = tokens_of(problem)
    for _ in range(depth):
        tokens = layer(tokens)
    return problem.start() - tokens[..., -1, -problem.y.shape[-1] :]
