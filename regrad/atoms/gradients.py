"""Per-passage gradients, many at once: the heart of both meta-training and the bank.

Each passage gets its own (expanded, not copied) view of phi0, so one backward pass of the summed losses
returns every passage's gradient by itself: for a LoRA projection gB_i = s * d_i^T (x_i A^T) and
gA_i = s * (d_i B)^T x_i, exactly what autograd computes for the batched products of `add_lora`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regrad.corpus import Passage
from regrad.language_model.batching import TokenBatch, losses_and_slopes, pad_batch, sequence_losses
from regrad.language_model.loading import LanguageModel


def encode_passage(lm: LanguageModel, passage: Passage) -> list[int]:
    """The token ids whose gradient is the passage's atom: start token, text, end token."""
    return [*lm.bos, *lm.encode(lm.config.prompts.atom_text(passage)), *lm.eos]


def passage_batch(lm: LanguageModel, sequences: Sequence[Sequence[int]]) -> TokenBatch:
    """Encoded passages, padded; every token after the first is predicted."""
    return pad_batch(sequences, [1] * len(sequences), lm.pad_id, lm.device)


def passage_gradients(
    lm: LanguageModel,
    phi: Tensor,
    batch: TokenBatch,
    reduction: str = "mean",
    create_graph: bool = False,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients [U, P] of each passage's language-model loss at phi, and the losses [U] (paper, eq. 1 and 2).

    `phi` is [P] for all passages, or [U, P], one start for each. With `create_graph` the result can be differentiated
    with respect to `phi` (second order). With `recompute` the adapted blocks keep no activations.
    """
    with torch.enable_grad():
        start = phi if create_graph else phi.detach()
        phi_UP = start.expand(batch.ids.shape[0], -1)
        phi_UP = phi_UP if create_graph else phi_UP.requires_grad_()
        with lm.lora.applied(phi_UP), lm.blocks.recomputed(recompute):
            if create_graph:
                losses = sequence_losses(lm, batch, reduction)
                (gradients,) = torch.autograd.grad(losses.sum(), phi_UP, create_graph=True)
            else:
                hidden_NTD = lm.hidden(batch.ids[:, :-1], batch.entered)
                losses, slopes_NTD = losses_and_slopes(lm, hidden_NTD, batch, reduction)
                (gradients,) = torch.autograd.grad(hidden_NTD, phi_UP, slopes_NTD)
    return gradients, losses.detach()
