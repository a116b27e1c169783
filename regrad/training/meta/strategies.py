"""Four ways to the gradient of the bi-level objective: `graph`, `hvp` and `difference`, and `first-order`, an ablation.

`graph` differentiates the whole objective. The others share a first-order pass over passages and questions, in chunks,
and add the second-order term. With v = dL/dphi_C and H_d the Hessian of passage d's loss at phi0:

dL/dphi0 = sum_C v_C - sum_d H_d (alpha * w_d),  w_d = sum of v_C over the updates C that d belongs to
dL/dalpha = -sum_C (sum_{d in C} g_d) * v_C
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from regrad.errors import ConfigError
from regrad.gradients.extractor import passage_gradients
from regrad.models.batching import TokenBatch, row_chunks
from regrad.models.config import ActsOn
from regrad.models.loading import LanguageModel
from regrad.training.meta.collate import MetaBatch
from regrad.training.meta.config import InnerConfig, StrategyConfig
from regrad.training.meta.objective import MetaGradient, Point, adapt, combine, outer_gradient, question_loss, shared


class Strategy(Protocol):
    """Computes the meta-gradient of a batch at a point."""

    @property
    def name(self) -> str:
        """As in the settings."""
        ...

    def __call__(self, lm: LanguageModel, at: Point, batch: MetaBatch) -> MetaGradient:
        """The loss and its gradients; the batch's frozen lower blocks are run once."""
        ...


@dataclass(frozen=True)
class Graph:
    """Exact. Attention runs in the kernel that has a double backward, whichever the model is configured with."""

    reduction: str = "mean"
    steps: int = 1
    name: str = "graph"
    acts_on: ActsOn = "everything"

    def __call__(self, lm: LanguageModel, at: Point, batch: MetaBatch) -> MetaGradient:
        """See `Strategy`. Several inner steps are possible."""
        batch = shared(lm, batch)
        # Of the attention kernels only MATH has a double backward, and the loss runs through the passages' gradients.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            leaf = Point(at.phi0.detach().requires_grad_(), at.alpha.detach().requires_grad_())
            updates_DP, inner = adapt(lm, leaf, batch, self.reduction, self.steps, create_graph=True)
            loss = question_loss(lm, updates_DP, batch, self.acts_on)
            phi_gradient, alpha_gradient = torch.autograd.grad(loss, (leaf.phi0, leaf.alpha))
        return MetaGradient(loss.detach(), inner.mean(), phi_gradient, alpha_gradient)


@dataclass(frozen=True)
class FirstOrderPass:
    """The gradients without the second-order term, and v [D, P], which that term needs."""

    gradient: MetaGradient
    v_DP: Tensor


def first_order_pass(
    lm: LanguageModel,
    at: Point,
    batch: MetaBatch,
    reduction: str,
    chunk_tokens: int,
    recompute: bool = False,
    acts_on: ActsOn = "everything",
) -> FirstOrderPass:
    """Passages' gradients chunk by chunk, then the questions; no graph outlives its chunk."""
    updates, passages = batch.membership.shape
    sums_DP, inner = at.phi0.new_zeros(updates, at.phi0.shape[0]), at.phi0.new_zeros(())
    for rows in row_chunks(batch.passages, chunk_tokens):
        gradients, losses = passage_gradients(lm, at.phi0, batch.passages.take(rows), reduction, recompute=recompute)
        sums_DP += combine(batch.membership[:, rows], gradients.to(sums_DP))
        inner = inner + losses.sum() / passages
    loss, v_DP = outer_gradient(lm, at.phi0 - at.alpha * sums_DP, batch, chunk_tokens, recompute, acts_on)
    return FirstOrderPass(MetaGradient(loss, inner, v_DP.sum(0), -(sums_DP * v_DP).sum(0)), v_DP)


def directions(at: Point, batch: MetaBatch, v_DP: Tensor, chunk_tokens: int) -> Iterator[tuple[TokenBatch, Tensor]]:
    """Chunks of passages, each with its directions alpha * w_d [U', P] for the Hessian of each passage."""
    for rows in row_chunks(batch.passages, chunk_tokens):
        yield batch.passages.take(rows), at.alpha * combine(batch.membership[:, rows].T, v_DP)


@dataclass(frozen=True)
class Hvp:
    """H_d u is the gradient of <g_d(phi), u> at phi0; the graph of one chunk of passages exists at a time."""

    reduction: str = "mean"
    chunk_tokens: int = 512
    name: str = "hvp"
    acts_on: ActsOn = "everything"

    def __call__(self, lm: LanguageModel, at: Point, batch: MetaBatch) -> MetaGradient:
        """See `Strategy`."""
        batch = shared(lm, batch, self.chunk_tokens)
        first = first_order_pass(lm, at, batch, self.reduction, self.chunk_tokens, acts_on=self.acts_on)
        second = torch.zeros_like(at.phi0)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for tokens, direction_UP in directions(at, batch, first.v_DP, self.chunk_tokens):
                # The Hessian itself (P x P) is never made: u is a constant here, so d<g(phi), u>/dphi is H u.
                phi = at.phi0.detach().requires_grad_()
                gradients, _ = passage_gradients(lm, phi, tokens, self.reduction, create_graph=True)
                (product,) = torch.autograd.grad((gradients * direction_UP).sum(), phi)
                second += product
        return replace(first.gradient, phi0=first.gradient.phi0 - second)


@dataclass(frozen=True)
class Difference:
    """H_d u ~ (g_d(phi0 + h u) - g_d(phi0 - h u)) / 2h: centred differences of first-order gradients.

    Only ordinary backward passes: fused attention and recomputation of activations work, and nothing is kept beyond one
    chunk. The result is exact to about the two-thirds power of the precision, relative to the second-order term; the
    error is estimated on the first chunk of a batch from a second difference with a step twice as long.
    """

    reduction: str = "mean"
    chunk_tokens: int = 512
    relative_step: float | None = None
    recompute: bool = False
    estimate: bool = True
    name: str = "difference"
    acts_on: ActsOn = "everything"

    def __call__(self, lm: LanguageModel, at: Point, batch: MetaBatch) -> MetaGradient:
        """See `Strategy`."""
        batch = shared(lm, batch, self.chunk_tokens)
        first = first_order_pass(lm, at, batch, self.reduction, self.chunk_tokens, self.recompute, self.acts_on)
        second, error = torch.zeros_like(at.phi0), None
        for tokens, direction_UP in directions(at, batch, first.v_DP, self.chunk_tokens):
            product = self._product(lm, at, tokens, direction_UP, 1.0)
            # A centred difference errs by c h^2: from steps h and 2h, three times that error is what they differ by.
            if error is None and self.estimate:
                wider = self._product(lm, at, tokens, direction_UP, 2.0)
                error = float((wider - product).norm() / 3 / product.norm().clamp_min(1e-30))
            second += product
        total = first.gradient.phi0 - second
        share = float(second.norm() / total.norm().clamp_min(1e-30))
        return replace(first.gradient, phi0=total, error=None if error is None else error * share)

    def _product(self, lm: LanguageModel, at: Point, tokens: TokenBatch, direction_UP: Tensor, factor: float) -> Tensor:
        """sum_d H_d u_d [P] of one chunk."""
        # |h u| is a fixed part of |phi0|: by default the cube root of the precision, which balances truncation (h^2)
        # against rounding (1 / h).
        relative = self.relative_step or torch.finfo(lm.compute_dtype).eps ** (1 / 3)
        norms_U1: Tensor = direction_UP.norm(dim=1, keepdim=True).clamp_min(torch.finfo(direction_UP.dtype).tiny)
        h_U1: Tensor = factor * (relative * at.phi0.norm() / norms_U1)
        sides: list[Tensor] = []
        for sign in (1.0, -1.0):
            phi_UP = at.phi0 + sign * h_U1 * direction_UP
            gradients, _ = passage_gradients(lm, phi_UP, tokens, self.reduction, recompute=self.recompute)
            sides.append((gradients / (2 * h_U1)).sum(0))
        return sides[0] - sides[1]


@dataclass(frozen=True)
class FirstOrder:
    """FOMAML: the passages' gradients are taken as constants. The step sizes' gradient is still exact."""

    reduction: str = "mean"
    chunk_tokens: int = 512
    recompute: bool = False
    name: str = "first-order"
    acts_on: ActsOn = "everything"

    def __call__(self, lm: LanguageModel, at: Point, batch: MetaBatch) -> MetaGradient:
        """See `Strategy`."""
        batch = shared(lm, batch, self.chunk_tokens)
        return first_order_pass(lm, at, batch, self.reduction, self.chunk_tokens, self.recompute, self.acts_on).gradient


def make_strategy(config: StrategyConfig, inner: InnerConfig) -> Strategy:
    """The strategy that `config.name` names (not `auto`, which `auto_strategy.choose` resolves)."""
    reduction, acts_on = inner.reduction, inner.acts_on
    chunk_tokens, recompute = config.chunk_tokens, config.activation_checkpointing
    if config.name == "graph":
        return Graph(reduction, inner.steps, acts_on=acts_on)
    if config.name == "hvp":
        return Hvp(reduction, chunk_tokens, acts_on=acts_on)
    if config.name == "difference":
        return Difference(reduction, chunk_tokens, config.relative_step, recompute, acts_on=acts_on)
    if config.name == "first-order":
        return FirstOrder(reduction, chunk_tokens, recompute, acts_on=acts_on)
    raise ConfigError(
        f"strategy {config.name} has to be chosen for a model and a batch first", code="strategy_not_chosen"
    )
