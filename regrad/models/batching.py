"""Token sequences to padded tensors, and their losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regrad.models.config import ActsOn
from regrad.models.token_losses import token_losses, token_losses_and_grads

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded ids [N, T], and which of them are predicted [N, T] bool (a row's first `start` tokens are not).

    `entered` [N, T - 1, D], if given, is what the first adapted block reads (see `share_lower_blocks`).
    """

    ids: Tensor
    predicted: Tensor
    entered: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, without padding [N]."""
        positions = torch.arange(1, self.ids.shape[1] + 1, device=self.ids.device)
        return (self.predicted * positions).amax(1)

    def acted_on(self, acts_on: ActsOn) -> Tensor | None:
        """The tokens of a pass over `ids[:, :-1]` that an update acts on [N, T - 1] bool; None for all.

        Of the answer: those at which one of its tokens is predicted, the last of the prompt among them.
        """
        return self.predicted[:, 1:] if acts_on == "answer" else None

    def take(self, rows: Tensor) -> TokenBatch:
        """Some of the rows, cut to the longest of them."""
        length = int(self.lengths[rows].max())
        entered = None if self.entered is None else self.entered[rows, : length - 1]
        return TokenBatch(self.ids[rows, :length], self.predicted[rows, :length], entered)


def row_chunks(batch: TokenBatch, tokens: int) -> list[Tensor]:
    """Row numbers in groups of similar length, each of at most `tokens` padded tokens (or of one row)."""
    lengths = batch.lengths.tolist()
    groups: list[list[int]] = [[]]
    longest = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        longest = max(longest, lengths[row])
        if groups[-1] and longest * (len(groups[-1]) + 1) > tokens:
            groups.append([])
            longest = lengths[row]
        groups[-1].append(row)
    return [torch.tensor(group, device=batch.ids.device) for group in groups if group]


def share_lower_blocks(lm: LanguageModel, batch: TokenBatch, tokens: int) -> TokenBatch:
    """The batch with the output of the frozen lower blocks, computed once and without a graph, `tokens` at a time."""
    parts = []
    size = max(1, tokens // batch.ids.shape[1])
    for start in range(0, batch.ids.shape[0], size):
        entered = lm.blocks.enter(batch.ids[start : start + size, :-1])
        if entered is None:
            return batch
        parts.append(entered)
    return replace(batch, entered=torch.cat(parts))


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
    hidden_NTD = lm.hidden(batch.ids[:, :-1], batch.entered)
    mask_NT = batch.predicted[:, 1:]
    losses_M = token_losses(lm, hidden_NTD[mask_NT], batch.ids[:, 1:][mask_NT])
    return _row_sums(losses_M, mask_NT) / _divisors(mask_NT, reduction)


def losses_and_grads(
    lm: LanguageModel, hidden_NTD: Tensor, batch: TokenBatch, reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    """Losses [N] as in `sequence_losses`, from the final hidden states, and the gradient of their sum there [N, T, D].

    First order only, as no graph is kept.
    """
    mask_NT = batch.predicted[:, 1:]
    divisors_N = _divisors(mask_NT, reduction)
    losses_M, grads_MD = token_losses_and_grads(lm, hidden_NTD.detach()[mask_NT], batch.ids[:, 1:][mask_NT])
    grads_NTD = torch.zeros_like(hidden_NTD)
    grads_NTD[mask_NT] = grads_MD / divisors_N[mask_NT.nonzero()[:, 0]].to(grads_MD.dtype)[:, None]
    return _row_sums(losses_M, mask_NT) / divisors_N, grads_NTD


def _row_sums(token_losses_M: Tensor, mask_NT: Tensor) -> Tensor:
    return token_losses_M.new_zeros(mask_NT.shape[0]).index_add(0, mask_NT.nonzero()[:, 0], token_losses_M)


def _divisors(mask_NT: Tensor, reduction: str) -> Tensor:
    counts_N = mask_NT.sum(1).clamp_min(1)
    return counts_N if reduction == "mean" else torch.ones_like(counts_N)
