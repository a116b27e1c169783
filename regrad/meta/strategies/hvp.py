"""`hvp`: Hessian-vector products, chunk by chunk. Exact, and memory flat in the number of passages."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from regrad.atoms.gradients import passage_gradients
from regrad.language_model.loading import LanguageModel
from regrad.meta.batch import MetaBatch
from regrad.meta.objective import MetaGradient, Point, shared
from regrad.meta.strategies.chunked import directions, first_order_pass


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
                phi = at.phi0.detach().requires_grad_()
                gradients, _ = passage_gradients(lm, phi, tokens, self.reduction, create_graph=True)
                (product,) = torch.autograd.grad((gradients * direction_UP).sum(), phi)
                second += product
        return replace(first.gradient, phi0=first.gradient.phi0 - second)
