"""The bi-level objective and its exact meta-gradient (paper, eq. 3 to 5), keeping the graph of every passage.

phi_C  = phi0 - alpha * sum_{d in C} g_d(phi0)
L      = mean over questions of -log p(answer | prompt; theta, phi_C)
output = dL/dphi0 (through g_d, second order) and dL/dalpha
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from regrad.atoms.gradients import passage_gradients
from regrad.language_model.batching import sequence_losses
from regrad.language_model.loading import LanguageModel
from regrad.meta.tasks import MetaBatch


@dataclass(frozen=True)
class MetaGradient:
    """The loss of one batch and its gradients: `phi0` [P] and `step_sizes` [n_tensors]; losses are detached scalars."""

    loss: Tensor
    inner_loss: Tensor
    phi0: Tensor
    step_sizes: Tensor


def adapted(lm: LanguageModel, phi0_P: Tensor, step_sizes: Tensor, sums_DP: Tensor) -> Tensor:
    """The updates phi_C [D, P] for sums of gradients [D, P]."""
    return phi0_P - lm.subspace.per_tensor(step_sizes) * sums_DP


def question_loss(lm: LanguageModel, updates_DP: Tensor, batch: MetaBatch) -> Tensor:
    """Mean over the batch's questions of the mean answer-token loss, each question under its own update (eq. 4)."""
    grouped = batch.questions_per_update is not None
    flat = updates_DP if grouped else updates_DP[batch.question_update]
    with lm.lora.applied(flat):
        return sequence_losses(lm, batch.questions).mean()


def meta_gradient(
    lm: LanguageModel, phi0_P: Tensor, step_sizes: Tensor, batch: MetaBatch, reduction: str = "mean"
) -> MetaGradient:
    """Exact gradients of the objective with respect to phi0 and the step sizes.

    Attention runs in the kernel that has a double backward, whichever the model is configured with.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        phi, alpha = phi0_P.detach().requires_grad_(), step_sizes.detach().requires_grad_()
        gradients_UP, inner = passage_gradients(lm, phi, batch.passages, reduction, create_graph=True)
        sums_DP = batch.membership.to(gradients_UP) @ gradients_UP
        loss = question_loss(lm, adapted(lm, phi, alpha, sums_DP), batch)
        phi_gradient, alpha_gradient = torch.autograd.grad(loss, (phi, alpha))
    return MetaGradient(loss.detach(), inner.mean(), phi_gradient, alpha_gradient)
