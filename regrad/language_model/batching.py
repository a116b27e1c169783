"""Token sequences to padded tensors, and their losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regrad.language_model.loading import LanguageModel


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded ids [N, T] and which of them are predicted [N, T] (the first `start` tokens of a row are not)."""

    ids: Tensor
    predicted: Tensor


def pad_batch(
    sequences: Sequence[Sequence[int]], starts: Sequence[int], pad_id: int, device: torch.device
) -> TokenBatch:
    """Pad to the longest; row i predicts its tokens from position `starts[i]` on (at least 1)."""
    length = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), length), pad_id)
    predicted = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        predicted[row, max(1, start) : len(sequence)] = True
    return TokenBatch(ids.to(device), predicted.to(device))


def sequence_losses(lm: LanguageModel, batch: TokenBatch, reduction: str = "mean") -> Tensor:
    """Each row's negative log-likelihood [N], by mean or sum over its predicted tokens (paper, eq. 1 and 4).

    Runs with whatever update is applied to `lm` and is differentiable with respect to it.
    """
    hidden_NTD = lm.hidden(batch.ids[:, :-1])
    mask_NT = batch.predicted[:, 1:]
    token_losses = F.cross_entropy(lm.logits(hidden_NTD[mask_NT]), batch.ids[:, 1:][mask_NT], reduction="none")
    rows = mask_NT.nonzero()[:, 0]
    totals = token_losses.new_zeros(mask_NT.shape[0]).index_add(0, rows, token_losses)
    return totals / mask_NT.sum(1).clamp_min(1) if reduction == "mean" else totals
