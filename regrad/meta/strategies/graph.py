"""`graph`: all passages in one pass, their graphs kept, and differentiated through. The fastest; memory grows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from regrad.language_model.loading import LanguageModel
from regrad.meta.batch import MetaBatch
from regrad.meta.objective import MetaGradient, Point, adapt, question_loss, shared


@dataclass(frozen=True)
class Graph:
    """Exact. Attention runs in the kernel that has a double backward, whichever the model is configured with."""

    reduction: str = "mean"
    steps: int = 1
    name: str = "graph"

    def __call__(self, lm: LanguageModel, at: Point, batch: MetaBatch) -> MetaGradient:
        """See `Strategy`. Several inner steps are possible."""
        batch = shared(lm, batch)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            leaf = Point(at.phi0.detach().requires_grad_(), at.alpha.detach().requires_grad_())
            updates_DP, inner = adapt(lm, leaf, batch, self.reduction, self.steps, create_graph=True)
            loss = question_loss(lm, updates_DP, batch)
            phi_gradient, alpha_gradient = torch.autograd.grad(loss, (leaf.phi0, leaf.alpha))
        return MetaGradient(loss.detach(), inner.mean(), phi_gradient, alpha_gradient)
