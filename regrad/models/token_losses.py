"""The losses of tokens, with the vocabulary's logits made, used and dropped for a few tokens at a time.

Logits are the largest tensors of all: with a vocabulary of 49,152, those of a passage of 300 tokens take 59 MB, and
every step of a softmax and of its derivatives that autograd records makes as many again. With the loss
l = logsumexp(z) - z_y of logits z = s (W h + b), shares p = softmax(z) and y the target's unit vector, all that is
needed of them is

    dl/dh = s W^T (p - y)
    H u   = s W^T (p * (a - <p, a>)),  a = s W u      (what a backward pass through dl/dh asks for)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


# Logits at a time. On a CPU they stay below the 32 MB from which on glibc gives a block back to the system at once, so
# that every use of the next one begins with page faults.
_AT_ONCE = {"cpu": 7_500_000}
_AT_ONCE_ELSEWHERE = 64_000_000
_TOKENS = 256


def token_losses(lm: LanguageModel, hidden_MD: Tensor, targets_M: Tensor) -> Tensor:
    """Each token's negative log-likelihood [M] in float32 or more; twice differentiable with respect to `hidden_MD`."""
    head = _Head.of(lm)
    if head is None:
        return F.cross_entropy(lm.logits(hidden_MD), targets_M, reduction="none")
    if not (torch.is_grad_enabled() and hidden_MD.requires_grad):
        return head.losses(hidden_MD, targets_M)
    losses_M: Tensor = _Losses.apply(hidden_MD, targets_M, head)  # type: ignore[no-untyped-call]
    return losses_M


def token_losses_and_grads(lm: LanguageModel, hidden_MD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    """The losses [M], and of each the gradient with respect to its token's hidden state [M, D]; no graph is kept."""
    head = _Head.of(lm)
    if head is not None:
        return head.losses_and_grads(hidden_MD.detach(), targets_M)
    losses, grads = [], []
    for hidden, targets in zip(*(torch.split(v, _TOKENS) for v in (hidden_MD, targets_M)), strict=True):
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            part = F.cross_entropy(lm.logits(leaf), targets, reduction="none")
            grads += torch.autograd.grad(part.sum(), leaf)
        losses.append(part.detach())
    return torch.cat(losses), torch.cat(grads)


@dataclass(frozen=True)
class _Head:
    """A frozen output embedding: the logits are `factor` * (W h + b), with products in the precision of `weight_VD`."""

    weight_VD: Tensor
    bias_V: Tensor | None
    factor: float

    @staticmethod
    def of(lm: LanguageModel) -> _Head | None:
        """None if the logits are not such a product, or if its weights are trained or only there in a forward pass."""
        module = lm.model.get_output_embeddings()  # type: ignore[operator]
        factor = lm.architecture.logit_factor(lm.text_config)
        if factor is None or type(module) is not nn.Linear or module.weight.requires_grad:
            return None
        if hasattr(module.weight, "ds_id"):  # DeepSpeed's: the rest of the weights is with other workers
            return None
        dtype = lm.compute_dtype
        return _Head(module.weight.to(dtype), None if module.bias is None else module.bias.to(dtype), factor)

    def losses(self, hidden_MD: Tensor, targets_M: Tensor) -> Tensor:
        """The losses [M]."""
        losses_M = self._numbers(hidden_MD.shape[0])
        for rows in self._chunks(hidden_MD):
            losses_M[rows] = F.cross_entropy(self._logits(hidden_MD[rows]), targets_M[rows], reduction="none")
        return losses_M

    def losses_and_grads(self, hidden_MD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        """The losses [M] and dl/dh [M, D]."""
        losses_M, grads_MD = self._numbers(hidden_MD.shape[0]), torch.empty_like(hidden_MD)
        for rows in self._chunks(hidden_MD):
            targets_C1, logits_CV = targets_M[rows, None], self._logits(hidden_MD[rows])
            log_sums_C1 = logits_CV.logsumexp(1, keepdim=True)
            losses_M[rows] = (log_sums_C1 - logits_CV.gather(1, targets_C1)).squeeze(1)
            shares_CV = logits_CV.sub_(log_sums_C1).exp_()
            shares_CV.scatter_add_(1, targets_C1, shares_CV.new_full(targets_C1.shape, -1.0))
            grads_MD[rows] = self._pulled_back(shares_CV)
        return losses_M, grads_MD

    def curvature(self, hidden_MD: Tensor, directions_MD: Tensor) -> Tensor:
        """H u [M, D], each token's second derivative times its direction; the targets have no part in it."""
        products_MD = torch.empty_like(hidden_MD)
        for rows in self._chunks(hidden_MD):
            shares_CV = self._logits(hidden_MD[rows]).softmax(1)
            along_CV = self._logits(directions_MD[rows], constant=False)
            mean_C1 = torch.linalg.vecdot(shares_CV, along_CV).unsqueeze(1)
            products_MD[rows] = self._pulled_back(along_CV.sub_(mean_C1).mul_(shares_CV))
        return products_MD

    def _chunks(self, hidden_MD: Tensor) -> Iterator[slice]:
        numbers = _AT_ONCE.get(hidden_MD.device.type, _AT_ONCE_ELSEWHERE)
        size = max(16, numbers // self.weight_VD.shape[0])
        return (slice(start, start + size) for start in range(0, hidden_MD.shape[0], size))

    def _logits(self, hidden_CD: Tensor, constant: bool = True) -> Tensor:
        """[C, V]; without the `constant` b, how they change along a direction."""
        scores = F.linear(hidden_CD.to(self.weight_VD.dtype), self.weight_VD, self.bias_V if constant else None)
        scores = scores.to(self._dtype)
        return scores if self.factor == 1 else scores.mul_(self.factor)

    def _pulled_back(self, grads_CV: Tensor) -> Tensor:
        """From gradients of the logits to those of the hidden states [C, D]."""
        grads_CD = grads_CV.to(self.weight_VD.dtype) @ self.weight_VD
        return grads_CD if self.factor == 1 else grads_CD * self.factor

    def _numbers(self, count: int) -> Tensor:
        return torch.empty(count, dtype=self._dtype, device=self.weight_VD.device)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.weight_VD.dtype == torch.float64 else torch.float32


class _Losses(torch.autograd.Function):
    """hidden [M, D] -> losses [M]. Its first derivative is made with the losses, as both need the logits."""

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, targets_M: Tensor, head: _Head) -> Tensor:
        losses_M, grads_MD = head.losses_and_grads(hidden_MD, targets_M)
        ctx.head = head
        ctx.save_for_backward(hidden_MD, grads_MD)
        return losses_M

    @staticmethod
    def backward(ctx: Any, weights_M: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        hidden_MD, grads_MD = ctx.saved_tensors
        grads = _Grads.apply(weights_M, hidden_MD, grads_MD, ctx.head)  # type: ignore[no-untyped-call]
        return grads, None, None


class _Grads(torch.autograd.Function):
    """The losses' `weights` [M], hidden [M, D], dl/dh [M, D], which is taken as given -> weights * dl/dh."""

    @staticmethod
    def forward(ctx: Any, weights_M: Tensor, hidden_MD: Tensor, grads_MD: Tensor, head: _Head) -> Tensor:
        ctx.head = head
        ctx.save_for_backward(weights_M, hidden_MD, grads_MD)
        return weights_M.to(grads_MD.dtype)[:, None] * grads_MD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, directions_MD: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        weights_M, hidden_MD, grads_MD = ctx.saved_tensors
        along_M = (directions_MD * grads_MD).sum(1).to(weights_M.dtype)
        products_MD = ctx.head.curvature(hidden_MD, directions_MD)
        return along_M, weights_M.to(products_MD.dtype)[:, None] * products_MD, None, None
