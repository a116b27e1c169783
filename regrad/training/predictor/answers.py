"""HyperTuning's loss: how likely predicted updates make the answers to questions that no context has.

The network is the one that learns to give gradient steps; here it is trained on the task itself, through the frozen
model (the baseline of RAG-GD's paper, after Phang and others, arXiv 2211.12485).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regrad.models.batching import final_hidden, losses_and_grads
from regrad.training.lora.examples import Example, example_batch
from regrad.training.lora.lora_artifact import StaticLora, join
from regrad.training.predictor.config import UpdateSpace

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


def answer_gradients(
    lm: LanguageModel, adapter: StaticLora, space: UpdateSpace, updates_UP: Tensor, asked: Sequence[Example]
) -> tuple[Tensor, Tensor]:
    """Each question's loss under W0 with its own update, in nats a token [U], and its gradient by the update [U, P].

    Updates are joined with W0 as when answering: see `added`.
    """
    leaf = updates_UP.detach().requires_grad_()
    start_P = adapter.values.to(leaf)
    batch = example_batch(lm, asked)
    with torch.enable_grad():
        if space == "factors":
            applied = {adapter.subspace: start_P + leaf}
        else:
            applied = join([(adapter.subspace, start_P), (adapter.subspace, leaf)])
        with lm.applied(applied):
            hidden_NTD = final_hidden(lm, batch)
            losses_U, grads_NTD = losses_and_grads(lm, hidden_NTD, batch)
            (gradients_UP,) = torch.autograd.grad(hidden_NTD, leaf, grads_NTD)
    return losses_U.detach(), gradients_UP
