"""The exact strategies: `graph` differentiates the whole objective, `hvp` takes Hessian-vector products."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from regrad.gradients.extractor import passage_gradients
from regrad.models.loading import LanguageModel
from regrad.training.meta.collate import MetaBatch
from regrad.training.meta.objective import MetaGradient, Point, adapt, question_loss, shared
from regrad.training.meta.strategies.shared import directions, first_order_pass


@dataclass(frozen=True)
class Graph:
    """Exact. Attention runs in the kernel that has a double backward, whichever the model is configured with."""

    reduction: str = "mean"
    steps: int = 1
    name: str = "graph"

    def __call__(self, lm: LanguageModel, at: Point, batch: MetaBatch) -> MetaGradient:
        """See `Strategy`. Several inner steps are possible."""
        batch = shared(lm, batch)
        # Of the attention kernels only MATH has a double backward, and the loss runs through the passages' gradients.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            leaf = Point(at.phi0.detach().requires_grad_(), at.alpha.detach().requires_grad_())
            updates_DP, inner = adapt(lm, leaf, batch, self.reduction, self.steps, create_graph=True)
            loss = question_loss(lm, updates_DP, batch)
            phi_gradient, alpha_gradient = torch.autograd.grad(loss, (leaf.phi0, leaf.alpha))
        return MetaGradient(loss.detach(), inner.mean(), phi_gradient, alpha_gradient)


@dataclass(frozen=True)
class Hvp:
    """H_d u is the gradient of <g_d(phi), u> at phi0; the graph of one chunk of passages exists at a time."""

    reduction: str = "mean"
    chunk_tokens: int = 512
    name: str = "hvp"

    def __call__(self, lm: LanguageModel, at: Point, batch: MetaBatch) -> MetaGradient:
        """See `Strategy`."""
        batch = shared(lm, batch, self.chunk_tokens)
        first = first_order_pass(lm, at, batch, self.reduction, self.chunk_tokens)
        second = torch.zeros_like(at.phi0)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for tokens, direction_UP in directions(at, batch, first.v_DP, self.chunk_tokens):
                # The Hessian itself (P x P) is never made: u is a constant here, so d<g(phi), u>/dphi is H u.
                phi = at.phi0.detach().requires_grad_()
                gradients, _ = passage_gradients(lm, phi, tokens, self.reduction, create_graph=True)
                (product,) = torch.autograd.grad((gradients * direction_UP).sum(), phi)
                second += product
        return replace(first.gradient, phi0=first.gradient.phi0 - second)
