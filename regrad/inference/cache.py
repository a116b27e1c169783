"""The keys and values that the engine keeps for each row of its batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

_FIRST_TOKENS = 64


class RowCache(Cache):
    """Keys and values [S, H, L, D] a layer, S rows of at most L tokens; both grow by doubling as they are needed.

    Before a forward pass `aim` says which rows its batch stands for and at which positions its tokens are. What a row
    holds beyond its own length is garbage of its own, which the mask of the pass must hide; a row that is not in use is
    all zeros, as no mask hides what is not finite. Rows times tokens stay within `most_tokens` as long as what is
    reserved does.
    """

    def __init__(self, layers: int, most_tokens: int) -> None:
        super().__init__(layers=[])
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self._most = most_tokens
        self.rows = 0
        self.tokens = 0

    def aim(self, rows: slice | Tensor, positions_NT: Tensor, length: int) -> None:
        """The next pass reads and writes `rows`, writes at `positions_NT`, and sees the first `length` tokens."""
        self._rows, self._positions, self._length = rows, positions_NT, length
        self._index: tuple[Tensor, Tensor] | None = None

    def reserve(self, rows: int, tokens: int) -> None:
        """See to it that there is room for so many rows, all that are in use, of so many tokens; these are kept."""
        if rows <= self.rows and tokens <= self.tokens:
            return
        self.rows, self.tokens = self._sizes(rows, tokens)
        self._kept = [pair and (self._resized(pair[0]), self._resized(pair[1])) for pair in self._kept]

    def clear(self) -> None:
        """Give the memory back. Only when no row is in use."""
        self._kept, self.rows, self.tokens = [None] * len(self._kept), 0, 0

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        for pair in self._kept:
            for kept in pair or ():
                kept[target] = kept[source]

    def blank(self, start: int, stop: int) -> None:
        """Rows from `start` to before `stop` are not in use any more."""
        for pair in self._kept if stop > start else ():
            for kept in pair or ():
                kept[start:stop].zero_()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the pass's keys and values [N, H, T, D]; returns all that its rows may see [N, H, length, D]."""
        pair = self._kept[layer_idx]
        if pair is None:
            pair = self._blank(key_states), self._blank(value_states)
            self._kept[layer_idx] = pair
        return self._write(pair[0], key_states), self._write(pair[1], value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before those of the pass; of no meaning here, as every pass says its positions itself."""
        return 0

    def _write(self, kept: Tensor, new_NHTD: Tensor) -> Tensor:
        rows_N1, positions_NT = self._places(kept)
        kept[rows_N1, :, positions_NT] = new_NHTD.transpose(1, 2)
        return kept[self._rows, :, : self._length]

    def _places(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        if self._index is None:
            numbers = self._rows
            if isinstance(numbers, slice):
                numbers = torch.arange(numbers.start, numbers.stop, device=kept.device)
            self._index = numbers[:, None], self._positions
        return self._index

    def _blank(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.rows, like.shape[1], self.tokens, like.shape[3])

    def _sizes(self, rows: int, tokens: int) -> tuple[int, int]:
        """Doubled until they suffice, or just enough where that would be more than allowed."""
        grown_rows, grown_tokens = grown(self.rows or 1, rows), grown(self.tokens or _FIRST_TOKENS, tokens)
        if grown_rows * grown_tokens <= self._most:
            return grown_rows, grown_tokens
        return max(rows, min(grown_rows, self._most // tokens)), tokens

    def _resized(self, kept: Tensor) -> Tensor:
        resized = self._blank(kept)
        rows, tokens = min(self.rows, kept.shape[0]), min(self.tokens, kept.shape[2])
        resized[:rows, :, :tokens] = kept[:rows, :, :tokens]
        return resized


def grown(size: int, needed: int) -> int:
    """The size, doubled until it is enough."""
    while size < needed:
        size *= 2
    return size
