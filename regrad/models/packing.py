"""Sequences that begin alike, read together: their common beginning once, then the rest of each, in one row.

Four questions about one passage, with it in their prompts, are the passage four times if each is a row of its own. In
a packed row a token attends to the beginning and to its own sequence, and has the position that it has there, so
losses and gradients are those of separate rows, up to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regrad.models.batching import Packing, TokenBatch, final_hidden, pad_batch

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

logger = logging.getLogger(__name__)

Begun = tuple[Sequence[int], int]
"""The token ids of a sequence, and how many of them are given; the others are predicted."""

# Tokens of packed rows over those of separate ones, with padding and without. Above it nothing is gained: at 0.7 (a
# system text of 15 tokens before questions of 24) a step of meta-training took the same time, as a longer row has more
# attention, and without padding counted all that is saved might be that.
_MOST_LEFT = 0.6
# What is compared once for every model: sequences of 8 and 7 tokens, of which 4 are common, and one of 6.
_CHECKED = (4, (8, 7), 6)
_MOST_DIFFERENT = {torch.float64: 1e-3, torch.float32: 1e-3}
_MOST_ROUNDED = 3e-2


def group_batch(lm: LanguageModel, groups: Sequence[Sequence[Begun]]) -> TokenBatch:
    """A row for each group if that is right and saves tokens, else for each sequence; losses come in the same order."""
    return packed_batch(lm, groups if packing_pays(lm, groups) else [[one] for group in groups for one in group])


def packing_pays(lm: LanguageModel, groups: Sequence[Sequence[Begun]]) -> bool:
    """Whether to read each group in one row: the model gives the same, for clearly fewer tokens."""
    if not lm.packs or all(len(group) == 1 for group in groups):
        return False
    lengths, rows = [len(ids) for group in groups for ids, _ in group], [row_length(group) for group in groups]
    longest, longest_row = max(lengths), max(rows)
    # Further back than its window a token of a separate row would not see. No row may exceed the context, either:
    # its sequences do not, but models differ in what they do with more tokens than that.
    if longest > _window(lm) or longest_row > lm.within(longest_row):
        return False
    padded = longest_row * len(rows), longest * len(lengths)
    return all(packed <= _MOST_LEFT * separate for packed, separate in (padded, (sum(rows), sum(lengths))))


def row_length(group: Sequence[Begun]) -> int:
    """The tokens of a group in one row."""
    common = common_beginning(group)
    return common + sum(len(ids) - common for ids, _ in group)


def common_beginning(group: Sequence[Begun]) -> int:
    """How many tokens all begin with, all of them given, and with a given one left for each (0 if one has none)."""
    first = group[0][0]
    most = max(0, min(start for _, start in group) - 1)
    return next((place for place in range(most) if any(ids[place] != first[place] for ids, _ in group)), most)


def packed_batch(lm: LanguageModel, groups: Sequence[Sequence[Begun]]) -> TokenBatch:
    """A row for each group of sequences."""
    if all(len(group) == 1 for group in groups):
        return pad_batch([group[0][0] for group in groups], [group[0][1] for group in groups], lm.pad_id, lm.device)
    shape = len(groups), max(map(row_length, groups))
    ids_NT, predicted_NT = torch.full(shape, lm.pad_id), torch.zeros(shape, dtype=torch.bool)
    segments_NT, positions_NT = torch.full(shape, -1), torch.zeros(shape, dtype=torch.long)
    for row, group in enumerate(groups):
        common = end = common_beginning(group)
        ids_NT[row, :common] = torch.tensor(group[0][0][:common])
        segments_NT[row, :common] = 0
        positions_NT[row, :common] = torch.arange(common)
        for number, (ids, start) in enumerate(group, 1):
            begin, end = end, end + len(ids) - common
            ids_NT[row, begin:end] = torch.tensor(ids[common:])
            segments_NT[row, begin:end] = number
            positions_NT[row, begin:end] = torch.arange(common, len(ids))
            predicted_NT[row, begin + max(1, start) - common : end] = True
    counts_N = torch.tensor([len(group) for group in groups])
    packing = Packing(*(values.to(lm.device) for values in (segments_NT, positions_NT, counts_N)))
    return TokenBatch(ids_NT.to(lm.device), predicted_NT.to(lm.device), packing=packing)


def reads_packed_rows(lm: LanguageModel) -> bool:
    """Whether the model gives for packed rows what it gives for separate ones: a few tokens are read in both ways."""
    common, lengths, other = _CHECKED
    together = [_tokens(lm, length, common, seed) for seed, length in enumerate(lengths)]
    groups = [[(ids, common + 1) for ids in together], [(_tokens(lm, other, 0, 2), 1)]]
    if max(lengths) > _window(lm) or row_length(groups[0]) > lm.within(row_length(groups[0])):
        return False
    try:
        packed, separate = _predicting(lm, groups), _predicting(lm, [[one] for one in chain(*groups)])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model raises, it does not take such a mask or such positions
        logger.info("%s reads every sequence in a row of its own: %s", type(lm.model).__name__, error)
        return False
    most = _MOST_DIFFERENT.get(separate.dtype, _MOST_ROUNDED)
    packed, separate = packed.double(), separate.double()
    same = bool((packed - separate).norm() <= most * (separate - separate.mean(-1, keepdim=True)).norm())
    if not same:
        logger.info("%s reads every sequence in a row of its own: packed rows differ", type(lm.model).__name__)
    return same


def _tokens(lm: LanguageModel, length: int, common: int, seed: int) -> list[int]:
    return [(3 + 5 * place + (0 if place < common else 7 * seed)) % lm.vocabulary_size for place in range(length)]


def _predicting(lm: LanguageModel, groups: Sequence[Sequence[Begun]]) -> Tensor:
    """The hidden states [M, D] at which the sequences' tokens are predicted, sequence by sequence."""
    batch = packed_batch(lm, groups)
    return final_hidden(lm, batch)[batch.predicted[:, 1:]]


def _window(lm: LanguageModel) -> float:
    """How far back every layer of the model sees."""
    return min((window for window in lm.architecture.windows(lm.text_config).values() if window), default=float("inf"))
