"""What `hvp`, `difference` and `first-order` share: a first-order pass over passages and questions, in chunks.

With v = dL/dphi_C and H_d the Hessian of passage d's loss at phi0:
dL/dphi0 = sum_C v_C - sum_d H_d (alpha * w_d),  w_d = sum of v_C over the updates C that d belongs to
dL/dalpha = -sum_C (sum_{d in C} g_d) * v_C
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from regrad.gradients.extractor import passage_gradients
from regrad.models.batching import TokenBatch, row_chunks
from regrad.models.loading import LanguageModel
from regrad.training.meta.collate import MetaBatch
from regrad.training.meta.objective import MetaGradient, Point, combine, outer_gradient


@dataclass(frozen=True)
class FirstOrderPass:
    """The gradients without the second-order term, and v [D, P], which that term needs."""

    gradient: MetaGradient
    v_DP: Tensor


def first_order_pass(
    lm: LanguageModel, at: Point, batch: MetaBatch, reduction: str, chunk_tokens: int, recompute: bool = False
) -> FirstOrderPass:
    """Passages' gradients chunk by chunk, then the questions; no graph outlives its chunk."""
    updates, passages = batch.membership.shape
    sums_DP, inner = at.phi0.new_zeros(updates, at.phi0.shape[0]), at.phi0.new_zeros(())
    for rows in row_chunks(batch.passages, chunk_tokens):
        gradients, losses = passage_gradients(lm, at.phi0, batch.passages.take(rows), reduction, recompute=recompute)
        sums_DP += combine(batch.membership[:, rows], gradients.to(sums_DP))
        inner = inner + losses.sum() / passages
    loss, v_DP = outer_gradient(lm, at.phi0 - at.alpha * sums_DP, batch, chunk_tokens, recompute)
    return FirstOrderPass(MetaGradient(loss, inner, v_DP.sum(0), -(sums_DP * v_DP).sum(0)), v_DP)


def directions(at: Point, batch: MetaBatch, v_DP: Tensor, chunk_tokens: int) -> Iterator[tuple[TokenBatch, Tensor]]:
    """Chunks of passages, each with its directions alpha * w_d [U', P] for the Hessian of each passage."""
    for rows in row_chunks(batch.passages, chunk_tokens):
        yield batch.passages.take(rows), at.alpha * combine(batch.membership[:, rows].T, v_DP)
