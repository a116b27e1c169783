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


_MOST_TOKENS = 8192
_PROCESSOR_BYTES = 1 << 30


def tokens_of_a_pass(lm: LanguageModel, wanted: int | None) -> int:
    """Padded tokens of a forward and backward pass: as wanted, else 8192, and fewer on a processor if they are large.

    What a pass keeps for its backward half is estimated. On a processor more than its caches hold makes it slower, and
    8192 tokens of a model with 135 million parameters took 14 GB (both measured: see docs/benchmarks.md).
    """
    if wanted is not None:
        return wanted
    if lm.device.type != "cpu":
        return _MOST_TOKENS
    config = lm.text_config
    outer = int(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or 4 * outer
    if not isinstance(inner, int):  # some have a size for each block
        inner = max(inner)
    each = lm.compute_dtype.itemsize * int(config.num_hidden_layers) * (8 * outer + 4 * inner)
    return max(1, min(_MOST_TOKENS, _PROCESSOR_BYTES // each))


@dataclass(frozen=True)
class Packing:
    """How sequences that begin alike lie in the rows of a batch: the common beginning once, then the rest of each.

    `segments_NT` is 0 for the beginning, 1, 2, ... for the rest of the first sequence, of the second and so on, and -1
    for padding; `positions_NT` is each token's place in its sequence, and `counts_N` are the sequences of each row.
    """

    segments_NT: Tensor
    positions_NT: Tensor
    counts_N: Tensor

    @property
    def tokens(self) -> Tensor:
        """Tokens of all sequences, a common beginning counted for each."""
        return (self.segments_NT > 0).sum() + ((self.segments_NT == 0).sum(1) * self.counts_N).sum()

    def take(self, rows: Tensor, length: int) -> Packing:
        """That of some of the rows, cut to `length`."""
        return Packing(self.segments_NT[rows, :length], self.positions_NT[rows, :length], self.counts_N[rows])

    def inputs(self, lm: LanguageModel, rows: slice) -> dict[str, Tensor]:
        """What the model reads beside these rows' ids, all but the last of each: positions, and who attends to whom."""
        segments_NT = self.segments_NT[rows, :-1]
        keys_N1T, queries_NT1 = segments_NT[:, None], segments_NT[..., None]
        # Padding sees the beginning and itself, so that no softmax is over nothing; nobody sees it, as it comes last.
        seen_NTT = ((keys_N1T == 0) | (keys_N1T == queries_NT1)).tril()
        # A mask that is added to the scores is right in every attention; a boolean one is not.
        added_NTT = torch.zeros(seen_NTT.shape, dtype=lm.compute_dtype, device=seen_NTT.device)
        added_NTT.masked_fill_(~seen_NTT, torch.finfo(lm.compute_dtype).min)
        return {"attention_mask": added_NTT[:, None], "position_ids": self.positions_NT[rows, :-1]}


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded ids [N, T], and which of them are predicted [N, T] bool (a row's first `start` tokens are not).

    `entered` [N, T - 1, D], if given, is what the first adapted block reads (see `share_lower_blocks`). A row is one
    sequence, or several with a `packing` (see `regrad.models.packing`), and then has a loss for each.
    """

    ids: Tensor
    predicted: Tensor
    entered: Tensor | None = None
    packing: Packing | None = None

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, without padding [N]."""
        positions = torch.arange(1, self.ids.shape[1] + 1, device=self.ids.device)
        return (self.predicted * positions).amax(1)

    @property
    def sequences(self) -> int:
        """The number of sequences, and so of losses."""
        return self.ids.shape[0] if self.packing is None else int(self.packing.counts_N.sum())

    @property
    def tokens(self) -> int:
        """Tokens of all sequences, without padding, however they lie in the rows."""
        return int(self.lengths.sum() if self.packing is None else self.packing.tokens)

    def owners(self) -> Tensor:
        """For each predicted token, row by row, the number of its sequence [M]."""
        mask_NT = self.predicted[:, 1:]
        rows_M = mask_NT.nonzero()[:, 0]
        if self.packing is None:
            return rows_M
        before_N = self.packing.counts_N.cumsum(0) - self.packing.counts_N
        return before_N[rows_M] + self.packing.segments_NT[:, 1:][mask_NT] - 1

    def inputs(self, lm: LanguageModel, rows: slice = slice(None)) -> dict[str, Tensor]:
        """What a pass over `ids[rows, :-1]` reads beside them."""
        return {} if self.packing is None else self.packing.inputs(lm, rows)

    def acted_on(self, acts_on: ActsOn) -> Tensor | None:
        """The tokens of a pass over `ids[:, :-1]` that an update acts on [N, T - 1] bool; None for all.

        Of the answer: those at which one of its tokens is predicted, the last of the prompt among them.
        """
        return self.predicted[:, 1:] if acts_on == "answer" else None

    def take(self, rows: Tensor) -> TokenBatch:
        """Some of the rows, cut to the longest of them."""
        length = int(self.lengths[rows].max())
        entered = None if self.entered is None else self.entered[rows, : length - 1]
        packing = None if self.packing is None else self.packing.take(rows, length)
        return TokenBatch(self.ids[rows, :length], self.predicted[rows, :length], entered, packing)


def row_chunks(batch: TokenBatch, tokens: int) -> list[Tensor]:
    """Row numbers in groups of similar length, each of at most `tokens` padded tokens (or of one row)."""
    return [torch.tensor(group, device=batch.ids.device) for group in length_groups(batch.lengths.tolist(), tokens)]


def length_groups(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """As `row_chunks`, of sequences of these lengths: their numbers, the shortest first."""
    groups: list[list[int]] = [[]]
    longest = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        longest = max(longest, lengths[row])
        if groups[-1] and longest * (len(groups[-1]) + 1) > tokens:
            groups.append([])
            longest = lengths[row]
        groups[-1].append(row)
    return [group for group in groups if group]


def share_lower_blocks(lm: LanguageModel, batch: TokenBatch, tokens: int) -> TokenBatch:
    """The batch with the output of the frozen lower blocks, computed once and without a graph, `tokens` at a time."""
    parts = []
    size = max(1, tokens // batch.ids.shape[1])
    for start in range(0, batch.ids.shape[0], size):
        rows = slice(start, start + size)
        entered = lm.blocks.enter(batch.ids[rows, :-1], **batch.inputs(lm, rows))
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


def final_hidden(lm: LanguageModel, batch: TokenBatch) -> Tensor:
    """The final hidden states [N, T - 1, D] at which the batch's tokens are predicted."""
    return lm.hidden(batch.ids[:, :-1], batch.entered, **batch.inputs(lm))


def sequence_losses(lm: LanguageModel, batch: TokenBatch, reduction: str = "mean") -> Tensor:
    """Each sequence's negative log-likelihood [S], by mean or sum over its predicted tokens (paper, eq. 1 and 4).

    Runs with whatever update is applied to `lm` and is differentiable with respect to it.
    """
    hidden_NTD = final_hidden(lm, batch)
    mask_NT, owners_M = batch.predicted[:, 1:], batch.owners()
    losses_M = token_losses(lm, hidden_NTD[mask_NT], batch.ids[:, 1:][mask_NT])
    divisors_S = _divisors(owners_M, batch.sequences, reduction)
    return _sums(losses_M, owners_M, batch.sequences) / divisors_S


def losses_and_grads(
    lm: LanguageModel, hidden_NTD: Tensor, batch: TokenBatch, reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    """Losses [S] as in `sequence_losses`, from the final hidden states, and the gradient of their sum there [N, T, D].

    First order only, as no graph is kept.
    """
    mask_NT, owners_M = batch.predicted[:, 1:], batch.owners()
    divisors_S = _divisors(owners_M, batch.sequences, reduction)
    losses_M, grads_MD = token_losses_and_grads(lm, hidden_NTD.detach()[mask_NT], batch.ids[:, 1:][mask_NT])
    grads_NTD = torch.zeros_like(hidden_NTD)
    grads_NTD[mask_NT] = grads_MD / divisors_S[owners_M].to(grads_MD.dtype)[:, None]
    return _sums(losses_M, owners_M, batch.sequences) / divisors_S, grads_NTD


def _sums(token_losses_M: Tensor, owners_M: Tensor, sequences: int) -> Tensor:
    return token_losses_M.new_zeros(sequences).index_add(0, owners_M, token_losses_M)


def _divisors(owners_M: Tensor, sequences: int, reduction: str) -> Tensor:
    counts_S = torch.bincount(owners_M, minlength=sequences).clamp_min(1)
    return counts_S if reduction == "mean" else torch.ones_like(counts_S)
