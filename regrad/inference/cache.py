"""The keys and values of the engine's rows, and the forward pass over rows that are at different places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from regrad.models.loading import LanguageModel

_FIRST_TOKENS = 64


class RowCache(Cache):
    """Keys and values [S, H, L, D] for each layer, S rows of at most L tokens; both grow by doubling when needed.

    Before a forward pass `aim` says which rows its batch stands for, and at which positions its tokens are. Rows times
    tokens stay within `most_tokens` as long as what is reserved does.
    """

    # What a row holds beyond its own length is left from other requests or passes, and the mask of a pass hides it.
    # Rows that are not in use are zeroed: no mask hides a number that is not finite, as 0 times it is none.

    def __init__(self, layers: int, most_tokens: int) -> None:
        super().__init__(layers=[])
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self._most = most_tokens
        self.rows = 0
        self.tokens = 0

    def aim(self, rows: slice | Tensor, positions_NT: Tensor, length: int) -> None:
        """The next pass reads and writes `rows`, writes at `positions_NT`, and sees the first `length` tokens."""
        self._rows = rows
        self._positions_NT = positions_NT
        self._length = length
        self._row_numbers_N1: Tensor | None = None

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for this many rows, all that are in use, of this many tokens; what they hold is kept."""
        if rows <= self.rows and tokens <= self.tokens:
            return
        grown_rows = grown(self.rows or 1, rows)
        grown_tokens = grown(self.tokens or _FIRST_TOKENS, tokens)
        # Doubled until they suffice, or just enough where doubling would take more than is allowed.
        if grown_rows * grown_tokens > self._most:
            grown_rows = max(rows, min(grown_rows, self._most // tokens))
            grown_tokens = tokens
        self.rows = grown_rows
        self.tokens = grown_tokens
        self._kept = [pair and (self._resized(pair[0]), self._resized(pair[1])) for pair in self._kept]

    def clear(self) -> None:
        """Free the memory. Only when no row is in use."""
        self._kept = [None] * len(self._kept)
        self.rows = 0
        self.tokens = 0

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        for pair in self._kept:
            for kept in pair or ():
                kept[target] = kept[source]

    def blank(self, start: int, stop: int) -> None:
        """Rows from `start` to before `stop` are no longer in use."""
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
        if self._row_numbers_N1 is None:  # made once a pass, in its first layer
            numbers = self._rows
            if isinstance(numbers, slice):
                numbers = torch.arange(numbers.start, numbers.stop, device=key_states.device)
            self._row_numbers_N1 = numbers[:, None]
        for kept, new_NHTD in zip(pair, (key_states, value_states), strict=True):
            kept[self._row_numbers_N1, :, self._positions_NT] = new_NHTD.transpose(1, 2)
        return pair[0][self._rows, :, : self._length], pair[1][self._rows, :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before those of the pass: meaningless here, as every pass gives its positions itself."""
        return 0

    def _blank(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.rows, like.shape[1], self.tokens, like.shape[3])

    def _resized(self, kept: Tensor) -> Tensor:
        resized = self._blank(kept)
        rows = min(self.rows, kept.shape[0])
        tokens = min(self.tokens, kept.shape[2])
        resized[:rows, :, :tokens] = kept[:rows, :, :tokens]
        return resized


def read_pieces(
    lm: LanguageModel,
    cache: RowCache,
    windows: dict[str, int | None],
    rows: slice | Tensor,
    pieces: Sequence[list[int]],
    starts: Sequence[int],
) -> Tensor:
    """One forward pass: the next piece of each prompt, or one token. Logits [N, V] after each piece's last token.

    Piece i continues the i-th of the cache's `rows` at position `starts[i]`; `windows` is what
    `Architecture.windows` returns.
    """
    device = lm.device
    lengths = [len(piece) for piece in pieces]
    most = max(lengths)
    ids_NT = torch.tensor([piece + [lm.pad_id] * (most - len(piece)) for piece in pieces], device=device)
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    # One place more than the longest row takes, where the padding of shorter pieces may be written: it must not
    # overwrite what a row has, and no token sees it.
    length = max(ends) + (min(lengths) < most)
    positions_NT = torch.tensor(starts, device=device)[:, None] + torch.arange(most, device=device)
    positions_NT = positions_NT.clamp(max=length - 1)
    cache.aim(rows, positions_NT, length)
    output = lm.model.base_model(  # type: ignore[operator]
        input_ids=ids_NT,
        attention_mask=_masks(positions_NT, length, lm.compute_dtype, windows),
        position_ids=positions_NT,
        past_key_values=cache,
        use_cache=True,
    )
    last = torch.tensor(lengths, device=device) - 1
    return lm.logits(output.last_hidden_state[torch.arange(len(pieces), device=device), last])


def _masks(
    positions_NT: Tensor, length: int, dtype: torch.dtype, windows: dict[str, int | None]
) -> Tensor | dict[str, Tensor]:
    """The mask of all layers, or one for each kind of layer where the kinds differ in this pass.

    A mask is [N, 1, T, length]: 0 where a token sees another of its row, else the least number. A token sees itself
    and those before it, `window` tokens in all.
    """
    # A model that is given finished masks uses them as they are: it would not add its own window to them.
    reach = {kind: window if window is not None and window < length else None for kind, window in windows.items()}
    others = torch.arange(length, device=positions_NT.device)
    blocked = torch.finfo(dtype).min
    masks: dict[int | None, Tensor] = {}
    for window in set(reach.values()):
        seen = others <= positions_NT[:, :, None]
        if window is not None:
            seen &= others > positions_NT[:, :, None] - window
        masks[window] = torch.where(seen, torch.zeros((), dtype=dtype, device=seen.device), blocked)[:, None]
    return masks.popitem()[1] if len(masks) == 1 else {kind: masks[window] for kind, window in reach.items()}


def grown(size: int, needed: int) -> int:
    """The size, doubled until it is enough."""
    while size < needed:
        size *= 2
    return size
