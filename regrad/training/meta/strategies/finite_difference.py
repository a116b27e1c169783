"""`difference`: centred differences of first-order gradients; and `first-order`, which leaves the second order out.

H_d u ~ (g_d(phi0 + h u) - g_d(phi0 - h u)) / 2h. Only ordinary backward passes: fused attention and recomputation
of activations work, and nothing is kept beyond one chunk. The step h follows from the norms: |h u| is a fixed part
of |phi0|, the cube root of the precision, which balances truncation (h^2) against rounding (1 / h).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regrad.gradients.extractor import passage_gradients
from regrad.models.batching import TokenBatch
from regrad.models.loading import LanguageModel
from regrad.training.meta.collate import MetaBatch
from regrad.training.meta.objective import MetaGradient, Point, shared
from regrad.training.meta.strategies.shared import directions, first_order_pass


@dataclass(frozen=True)
class FirstOrder:
    """FOMAML: the passages' gradients are taken as constants. The step sizes' gradient is still exact."""

    reduction: str = "mean"
    chunk_tokens: int = 512
    recompute: bool = False
    name: str = "first-order"

    def __call__(self, lm: LanguageModel, at: Point, batch: MetaBatch) -> MetaGradient:
        """See `Strategy`."""
        return first_order_pass(
            lm, at, shared(lm, batch, self.chunk_tokens), self.reduction, self.chunk_tokens, self.recompute
        ).gradient


@dataclass(frozen=True)
class Difference:
    """Exact to about the two-thirds power of the precision, relative to the second-order term.

    The error is estimated on the first chunk of a batch from a second difference with a step twice as long.
    """

    reduction: str = "mean"
    chunk_tokens: int = 512
    relative_step: float | None = None
    recompute: bool = False
    estimate: bool = True
    name: str = "difference"

    def __call__(self, lm: LanguageModel, at: Point, batch: MetaBatch) -> MetaGradient:
        """See `Strategy`."""
        batch = shared(lm, batch, self.chunk_tokens)
        first = first_order_pass(lm, at, batch, self.reduction, self.chunk_tokens, self.recompute)
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
        h_U1 = factor * self._step(lm, at, direction_UP)
        sides = []
        for sign in (1.0, -1.0):
            phi_UP = at.phi0 + sign * h_U1 * direction_UP
            gradients, _ = passage_gradients(lm, phi_UP, tokens, self.reduction, recompute=self.recompute)
            sides.append((gradients / (2 * h_U1)).sum(0))
        return sides[0] - sides[1]

    def _step(self, lm: LanguageModel, at: Point, direction_UP: Tensor) -> Tensor:
        """h for each passage [U, 1]."""
        relative = self.relative_step or torch.finfo(lm.compute_dtype).eps ** (1 / 3)
        smallest = torch.finfo(direction_UP.dtype).tiny
        norms_U1: Tensor = direction_UP.norm(dim=1, keepdim=True).clamp_min(smallest)
        step_U1: Tensor = relative * at.phi0.norm() / norms_U1
        return step_U1
