"""A pass of the engine: keys and values that it reads and writes, and what rows whose prompts begin alike read once.

As far as no update reaches, the keys and values of such prompts are the base's. The whole model is shared by rows of
which none has an active update, as while the prompts of updates are read that act on the answer; else the blocks
below the first adapted one are, and from there on each row is by itself. Beyond the pass `prefixes.py` keeps some.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from regrad.inference.kernels import Kernels
from regrad.inference.rows import Row
from regrad.models.blocks import Blocks
from regrad.models.loading import LanguageModel
from regrad.models.subspace import by_subspace

_FIRST_TOKENS = 64
# A pass of its own for fewer tokens costs more than reading them in every row.
_LEAST_COMMON = 16


class RowCache(Cache):
    """Keys and values [S, H, L, D] for each layer, S rows of at most L tokens; both grow by doubling when needed.

    Before a forward pass `aim` says which rows its batch stands for, and at which positions its tokens are. Rows times
    tokens stay within `most` as long as what is reserved does.
    """

    # What a row holds beyond its own length is left from other requests or passes, and the mask of a pass hides it.
    # Rows that are not in use are zeroed: no mask hides a number that is not finite, as 0 times it is none.

    def __init__(self, layers: int, most_tokens: int) -> None:
        super().__init__(layers=[])
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.most = most_tokens
        self.rows = 0
        self.tokens = 0

    def aim(
        self, rows: slice | Tensor, positions_NT: Tensor, length: int, shared: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """The next pass reads and writes `rows`, writes at `positions_NT`, and sees the first `length` tokens.

        With `shared`, two tensors [U] and [N], its batch has only the rows at the places of the first, and row i is
        written with what row `shared[1][i]` of the batch has.
        """
        self._rows = rows
        self._positions_NT = positions_NT
        self._length = length
        self._shared = shared
        self._places: dict[torch.device, _Places] = {}  # made once a pass, by the first layer of each device

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for this many rows, all that are in use, of this many tokens; what they hold is kept."""
        if rows <= self.rows and tokens <= self.tokens:
            return
        grown_rows = _grown(self.rows or 1, rows)
        grown_tokens = _grown(self.tokens or _FIRST_TOKENS, tokens)
        # Doubled until they suffice, or just enough where doubling would take more than is allowed.
        if grown_rows * grown_tokens > self.most:
            grown_rows = max(rows, min(grown_rows, self.most // tokens))
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

    def token_bytes(self, layers: int | None = None) -> int:
        """What one token takes in a row, in the first so many layers or in all, once a pass has written them."""
        kept = (each for pair in self._kept[:layers] for each in pair or ())
        return sum(each.shape[1] * each.shape[3] * each.element_size() for each in kept)

    def copied(self, row: int, tokens: int, layers: int | None = None) -> list[tuple[Tensor, Tensor] | None]:
        """Copies of the row's first keys and values [H, n, D], in the first so many layers or in all."""
        # A clone of a part has memory of its own: a view would hold that of all rows.
        return [
            pair and (pair[0][row, :, :tokens].clone(), pair[1][row, :, :tokens].clone())
            for pair in self._kept[:layers]
        ]

    def put(self, row: int, tokens: int, pairs: Sequence[tuple[Tensor, Tensor] | None]) -> None:
        """Write the first `tokens` of what `copied` gave into a row, in the first layers."""
        for layer, pair in enumerate(pairs):
            if pair is None:
                continue
            kept = self._kept[layer] or (self._blank(pair[0][None]), self._blank(pair[1][None]))
            self._kept[layer] = kept
            for into, copied in zip(kept, pair, strict=True):
                into[row, :, :tokens] = copied[:, :tokens]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the pass's keys and values [N, H, T, D]; returns all that its rows may see [N, H, length, D]."""
        pair = self._kept[layer_idx]
        if pair is None:
            pair = self._blank(key_states), self._blank(value_states)
            self._kept[layer_idx] = pair
        places = self._places.get(key_states.device)
        if places is None:
            places = _Places.of(self._rows, self._positions_NT, self._shared, key_states.device)
            self._places[key_states.device] = places
        for kept, new_NHTD in zip(pair, (key_states, value_states), strict=True):
            new_NHTD = new_NHTD if places.readers_N is None else new_NHTD[places.readers_N]
            kept[places.rows_N1, :, places.positions_NT] = new_NHTD.transpose(1, 2)
        return pair[0][places.seen, :, : self._length], pair[1][places.seen, :, : self._length]

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


@dataclass(frozen=True)
class _Places:
    """Which keys and values a pass writes and sees, on the device of the layers that have them."""

    rows_N1: Tensor
    positions_NT: Tensor
    readers_N: Tensor | None
    seen: slice | Tensor

    @staticmethod
    def of(
        rows: slice | Tensor, positions_NT: Tensor, shared: tuple[Tensor, Tensor] | None, device: torch.device
    ) -> _Places:
        numbers_N = torch.arange(rows.start, rows.stop, device=device) if isinstance(rows, slice) else rows.to(device)
        rows_N1, positions_NT = numbers_N[:, None], positions_NT.to(device)
        if shared is None:
            return _Places(rows_N1, positions_NT, None, rows if isinstance(rows, slice) else rows_N1[:, 0])
        reading_U, readers_N = (each.to(device) for each in shared)
        return _Places(rows_N1, positions_NT, readers_N, rows_N1[reading_U, 0])


@dataclass(frozen=True)
class Readers:
    """Of each row of a pass the place of the row that reads for it, for most its own.

    By the `whole` model, if no row has an active update, or else by the blocks below the first adapted one.
    """

    places: Sequence[int]
    whole: bool

    def number(self, place: int) -> int:
        """The number of a row's reader among those that read."""
        return sorted(set(self.places)).index(self.places[place])

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The places of those that read [U], and of each row the number of its reader among them [N]."""
        reading = sorted(set(self.places))
        numbers = [self.number(place) for place in range(len(self.places))]
        return torch.tensor(reading, device=device), torch.tensor(numbers, device=device)


@dataclass(frozen=True)
class SharedReading:
    """Which rows of a pass read the same, where the `whole` model or its lower blocks (None: never) can be shared."""

    blocks: Blocks | None
    whole: bool

    def choose(self, rows: Sequence[Row], most: int) -> list[int]:
        """The first rows with a prompt to read whose pieces, padded to the longest, keep within `most` tokens.

        What several of them read alike, by the whole model, counts once. There is always one, if any has to read.
        """
        chosen: list[int] = []
        apart: list[_Reading] = []
        longest, bare = 0, self.whole
        for number, row in enumerate(rows):
            if not row.is_prefilling:
                continue
            reading = _Reading.of(row, row.next_tokens(most))
            longest = max(longest, reading.tokens)
            bare = bare and not row.in_force
            if bare and not any(one.begins_with(reading) for one in apart):
                apart = [*(one for one in apart if not reading.begins_with(one)), reading]
            if chosen and longest * (len(apart) if bare else len(chosen) + 1) > most:
                break
            chosen.append(number)
        return chosen

    def common_tokens(self, rows: Sequence[Row], most: int) -> int:
        """How many tokens all of these prompts begin with, at most `most`; 0 if that is not worth a pass of its own."""
        if len(rows) < 2 or any(row.read for row in rows):
            return 0
        pieces = [row.next_tokens(most) for row in rows]
        differ = (place for place, tokens in enumerate(zip(*pieces, strict=False)) if len(set(tokens)) > 1)
        common = next(differ, min(map(len, pieces)))
        if not _LEAST_COMMON <= common < max(map(len, pieces)) or not self._shareable(rows):
            return 0
        readers = self.readers(rows, pieces)
        return 0 if readers and len(set(readers.places)) == 1 else common

    def readers(self, rows: Sequence[Row], pieces: Sequence[list[int]]) -> Readers | None:
        """Who reads for whom in a pass of these pieces; None if each row reads for itself.

        A row reads for those whose prompts, to the end of their pieces, are its own or the beginning of its own.
        """
        if len(rows) < 2 or not all(row.is_prefilling for row in rows) or not self._shareable(rows):
            return None
        readings = [_Reading.of(*pair) for pair in zip(rows, pieces, strict=True)]
        places, leading = list(range(len(rows))), list[int]()
        for place in sorted(places, key=lambda place: -readings[place].tokens):
            places[place] = next((one for one in leading if readings[one].begins_with(readings[place])), place)
            if places[place] == place:
                leading.append(place)
        return Readers(places, self._bare(rows)) if len(leading) < len(rows) else None

    def _shareable(self, rows: Sequence[Row]) -> bool:
        """Whether the model, or its lower blocks, are without the updates of any of the rows, which a pass applies."""
        blocks = self.blocks
        if self._bare(rows):
            return True
        if blocks is None or not blocks.lower:
            return False
        return all(blocks.below(subspace) for row in rows for subspace in by_subspace(row.in_force))

    def _bare(self, rows: Sequence[Row]) -> bool:
        return self.whole and not any(row.in_force for row in rows)


@dataclass(frozen=True)
class _Reading:
    """A piece of `tokens` that begins at `start`, and the prompt to its end."""

    start: int
    tokens: int
    prompt: list[int]

    @staticmethod
    def of(row: Row, piece: list[int]) -> _Reading:
        return _Reading(row.read, len(piece), row.prompt[: row.read + len(piece)])

    def begins_with(self, other: _Reading) -> bool:
        return self.start == other.start and self.prompt[: len(other.prompt)] == other.prompt


def read_pieces(
    lm: LanguageModel,
    cache: RowCache,
    windows: dict[str, int | None],
    rows: slice | Tensor,
    pieces: Sequence[list[int]],
    starts: Sequence[int],
    kernels: Kernels,
    scored: Sequence[int] | None = None,
    readers: Readers | None = None,
    given_NTD: Tensor | None = None,
) -> Tensor:
    """One forward pass: the next piece of each prompt, or one token. Logits [N, V] after each piece's last token.

    With `scored` [M, V] after the last `scored[i]` tokens of each. Piece i continues the i-th of the cache's `rows` at
    position `starts[i]`; `windows` is what `Architecture.windows` returns. With `readers`, rows for which another reads
    have read the same and read the beginning of the same piece. With `given_NTD` the blocks below the first adapted one
    are left out, as the cache has their keys and values, and that block reads this.
    """
    # The vocabulary is most of a small model, so only for these tokens.
    with kernels.used():
        return lm.logits(final_states(lm, cache, windows, rows, pieces, starts, scored, readers, given_NTD))


def final_states(
    lm: LanguageModel,
    cache: RowCache,
    windows: dict[str, int | None],
    rows: slice | Tensor,
    pieces: Sequence[list[int]],
    starts: Sequence[int],
    scored: Sequence[int] | None = None,
    readers: Readers | None = None,
    given_NTD: Tensor | None = None,
) -> Tensor:
    """The pass of `read_pieces`, with the kernels in use: the final states [M, D] of which it gives the logits."""
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
    numbers = [(i, at) for i, of in enumerate(lengths) for at in range(of - (scored[i] if scored else 1), of)]
    row_numbers, last = torch.tensor(numbers, device=device).unbind(1)
    entered_NTD = given_NTD
    if readers is not None:
        # What a longer piece writes behind the end of a shorter one is hidden there, as padding is.
        reading_U, readers_N = readers.tensors(device)
        cache.aim(rows, positions_NT, length, (reading_U, readers_N))
        inputs = _inputs(cache, positions_NT[reading_U], length, lm.compute_dtype, windows)
        if readers.whole:
            output = lm.model.base_model(input_ids=ids_NT[reading_U], **inputs)  # type: ignore[operator]
            return output.last_hidden_state[readers_N[row_numbers], last]  # type: ignore[no-any-return]
        entered_UTD = lm.blocks.enter(ids_NT[reading_U], **inputs)
        entered_NTD = None if entered_UTD is None else entered_UTD[readers_N]
    cache.aim(rows, positions_NT, length)
    inputs = _inputs(cache, positions_NT, length, lm.compute_dtype, windows)
    with nullcontext() if entered_NTD is None else lm.blocks.skipped(entered_NTD):
        output = lm.model.base_model(input_ids=ids_NT, **inputs)  # type: ignore[operator]
    return output.last_hidden_state[row_numbers, last]  # type: ignore[no-any-return]


def _inputs(
    cache: RowCache, positions_NT: Tensor, length: int, dtype: torch.dtype, windows: dict[str, int | None]
) -> dict[str, Any]:
    masks = _masks(positions_NT, length, dtype, windows)
    return {"attention_mask": masks, "position_ids": positions_NT, "past_key_values": cache, "use_cache": True}


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


def _grown(size: int, needed: int) -> int:
    """The size, doubled until it is enough."""
    while size < needed:
        size *= 2
    return size
