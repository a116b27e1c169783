"""The bi-level objective (paper, eq. 3 to 5), and what the strategies for its gradient share.

phi_C  = phi0 - alpha * sum_{d in C} g_d(phi0)
L      = mean over tasks of the mean over their questions of -log p(answer | prompt; theta, phi_C)
output = dL/dphi0 (through g_d, second order) and dL/dalpha
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regrad.gradients.extractor import passage_gradients
from regrad.models.batching import sequence_losses, share_lower_blocks
from regrad.models.config import ActsOn
from regrad.models.loading import LanguageModel
from regrad.training.meta.collate import MetaBatch


@dataclass(frozen=True)
class Point:
    """Where the gradient is taken: phi0 [P] and alpha [P] (one per number; a tied step size is repeated)."""

    phi0: Tensor
    alpha: Tensor


@dataclass(frozen=True)
class MetaGradient:
    """The loss of one batch and its gradients, `phi0` [P] and `alpha` [P]; losses are detached scalars.

    `error` is the strategy's own estimate of the relative error of `phi0`, where it makes one.
    """

    loss: Tensor
    inner_loss: Tensor
    phi0: Tensor
    alpha: Tensor
    error: float | None = None

    def __add__(self, other: MetaGradient) -> MetaGradient:
        """The gradient of the sum of two losses."""
        return MetaGradient(
            self.loss + other.loss,
            self.inner_loss + other.inner_loss,
            self.phi0 + other.phi0,
            self.alpha + other.alpha,
            max((e for e in (self.error, other.error) if e is not None), default=None),
        )

    def scaled(self, factor: float) -> MetaGradient:
        """The gradient of `factor` times the loss."""
        return MetaGradient(
            self.loss * factor, self.inner_loss * factor, self.phi0 * factor, self.alpha * factor, self.error
        )


def shared(lm: LanguageModel, batch: MetaBatch, chunk_tokens: int = 8192) -> MetaBatch:
    """The batch with the frozen lower blocks already run, `chunk_tokens` at a time, once for all passes of the step."""
    # No update reaches the blocks below the first adapted one: what they give is the same at phi0, at phi_C and at
    # every point that a difference visits, and nothing is differentiated through them.
    return batch.with_tokens(
        share_lower_blocks(lm, batch.passages, chunk_tokens), share_lower_blocks(lm, batch.questions, chunk_tokens)
    )


def combine(weights_NM: Tensor, vectors_MP: Tensor) -> Tensor:
    """Weighted sums [N, P] of vectors, in their own precision also inside an autocast block."""
    with torch.autocast(vectors_MP.device.type, enabled=False):
        return weights_NM.to(vectors_MP) @ vectors_MP


def adapt(
    lm: LanguageModel, at: Point, batch: MetaBatch, reduction: str = "mean", steps: int = 1, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """The updates phi_C [D, P] after `steps` inner steps (paper, eq. 3), and the passages' losses at phi0 [U].

    The first step starts at phi0 for all, so a passage that several updates share is differentiated once; later
    steps start from the update reached so far, with one row for each passage of each update.
    """
    # With `create_graph` the gradients stay functions of phi0, so a backward pass through the updates meets their
    # second derivatives: the term that first-order training leaves out.
    gradients_UP, losses = passage_gradients(lm, at.phi0, batch.passages, reduction, create_graph)
    updates_DP = at.phi0 - at.alpha * combine(batch.membership, gradients_UP)
    update, passage = batch.membership.nonzero(as_tuple=True)
    for _ in range(steps - 1):
        rows = batch.passages.take(passage)
        gradients, _ = passage_gradients(lm, updates_DP[update], rows, reduction, create_graph)
        sums_DP = torch.zeros_like(updates_DP).index_add(0, update, gradients)
        updates_DP = updates_DP - at.alpha * sums_DP
    return updates_DP, losses


def question_loss(lm: LanguageModel, updates_DP: Tensor, batch: MetaBatch, acts_on: ActsOn = "everything") -> Tensor:
    """The weighted sum of the questions' mean answer-token losses, each under its own update (eq. 4)."""
    with lm.lora.applied(updates_DP, batch.questions.acted_on(acts_on)):
        losses = sequence_losses(lm, batch.questions)
        return (losses * batch.weights.to(losses)).sum()


def outer_gradient(
    lm: LanguageModel,
    updates_DP: Tensor,
    batch: MetaBatch,
    chunk_tokens: int,
    recompute: bool = False,
    acts_on: ActsOn = "everything",
) -> tuple[Tensor, Tensor]:
    """The loss and v = dL/dphi_C [D, P], some updates' questions at a time, so that memory does not grow with tasks."""
    updates = updates_DP.shape[0]
    size = max(1, chunk_tokens // (batch.questions.ids.shape[1] * batch.rows_per_update))
    loss, parts = updates_DP.new_zeros(()), []
    for first in range(0, updates, size):
        last = min(first + size, updates)
        # The graph ends at the update: dL/dphi_C is all that `strategies.py` needs of the questions.
        leaf = updates_DP[first:last].detach().requires_grad_()
        part = batch.of_updates(first, last)
        tokens_NT = part.questions.acted_on(acts_on)
        with torch.enable_grad(), lm.lora.applied(leaf, tokens_NT), lm.blocks.recomputed(recompute):
            losses = sequence_losses(lm, part.questions)
            part_loss = (losses * part.weights.to(losses)).sum()
            parts.append(torch.autograd.grad(part_loss, leaf)[0])
        loss = loss + part_loss.detach()
    return loss, torch.cat(parts)
