"""What the engine keeps for its rows: keys and values, with the pass that reads and writes them, and updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from regrad.inference.kernels import Kernels
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace

_FIRST_TOKENS = 64
_FIRST_ROWS = 4


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
            self._row_numbers_N1 = _numbers(self._rows, key_states.device)[:, None]
        for kept, new_NHTD in zip(pair, (key_states, value_states), strict=True):
            new_NHTD = new_NHTD if self._shared is None else new_NHTD[self._shared[1]]
            kept[self._row_numbers_N1, :, self._positions_NT] = new_NHTD.transpose(1, 2)
        seen = self._rows if self._shared is None else self._row_numbers_N1[self._shared[0], 0]
        return pair[0][seen, :, : self._length], pair[1][seen, :, : self._length]

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


def _numbers(rows: slice | Tensor, device: torch.device) -> Tensor:
    return torch.arange(rows.start, rows.stop, device=device) if isinstance(rows, slice) else rows


@dataclass(frozen=True)
class Readers:
    """Of each row of a pass the place of the row that reads for it, for most its own.

    By the `whole` model, if no row has an update in force, or else by the blocks below the first adapted one.
    """

    places: Sequence[int]
    whole: bool

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The places of those that read [U], and of each row the number of its reader among them [N]."""
        reading = sorted(set(self.places))
        numbers = [reading.index(place) for place in self.places]
        return torch.tensor(reading, device=device), torch.tensor(numbers, device=device)


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
) -> Tensor:
    """One forward pass: the next piece of each prompt, or one token. Logits [N, V] after each piece's last token.

    With `scored` [M, V] after the last `scored[i]` tokens of each. Piece i continues the i-th of the cache's `rows` at
    position `starts[i]`; `windows` is what `Architecture.windows` returns. With `readers`, rows for which another reads
    have read the same and read the beginning of the same piece.
    """
    # The vocabulary is most of a small model, so only for these tokens.
    with kernels.used():
        return lm.logits(final_states(lm, cache, windows, rows, pieces, starts, scored, readers))


def final_states(
    lm: LanguageModel,
    cache: RowCache,
    windows: dict[str, int | None],
    rows: slice | Tensor,
    pieces: Sequence[list[int]],
    starts: Sequence[int],
    scored: Sequence[int] | None = None,
    readers: Readers | None = None,
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
    entered_NTD = None
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


def grown(size: int, needed: int) -> int:
    """The size, doubled until it is enough."""
    while size < needed:
        size *= 2
    return size


class RowUpdates:
    """What each row runs with: an update in one subspace or in several, or none.

    A subspace takes memory only while a row has an update in it, and time only in passes of such a row.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._dtype = lm.compute_dtype
        # The model's own subspace is kept for good: most rows have their update there, and making room for it at every
        # single request costs more than keeping it.
        self._kept = {lm.subspace: _SubspaceRows(lm, lm.subspace, self._dtype, 1)}
        self._rows = 0

    def put(self, row: int, vectors: Mapping[Subspace, Tensor]) -> None:
        """Replace a row's updates ([P] in each subspace)."""
        self._rows = max(self._rows, row + 1)
        for subspace in vectors:
            if subspace not in self._kept:
                self._kept[subspace] = _SubspaceRows(self._lm, subspace, self._dtype, self._rows)
        for subspace, kept in self._kept.items():
            kept.put(row, vectors.get(subspace))

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        for kept in self._kept.values():
            kept.move(source, target)

    def truncate(self, rows: int) -> None:
        """Only the first `rows` are in use from now on; what none of them needs is dropped."""
        self._rows = rows
        for kept in self._kept.values():
            kept.truncate(rows)
        for subspace in [subspace for subspace, kept in self._kept.items() if not kept.users]:
            if subspace != self._lm.subspace:
                self._kept.pop(subspace).release()

    def release(self) -> None:
        """Take the hooks off the model: no row is used any more."""
        for kept in self._kept.values():
            kept.release()
        self._kept = {}

    def applied(self, numbers: Sequence[int], rows: slice | Tensor) -> AbstractContextManager[None]:
        """Inside the block, row i of a pass runs with the updates of row `numbers[i]`; `rows` is `numbers` as index."""
        needed = [kept.applied(rows) for kept in self._kept.values() if not kept.users.isdisjoint(numbers)]
        if len(needed) < 2:  # the usual case, and a stack costs a pass of a small model a few percent
            return needed[0] if needed else nullcontext()
        return _entered(needed)


@contextmanager
def _entered(contexts: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


class _SubspaceRows:
    """Updates [S, P] in one subspace, in the model's precision, each B multiplied by the subspace's scale."""

    # Rows without an update, which are not in `users`, are zeros, for which B A x is zero. So the rows of any pass are
    # one view of the memory, and usually one that an earlier pass has made. There is room for all rows in use, whether
    # or not they have an update here.

    def __init__(self, lm: LanguageModel, subspace: Subspace, dtype: torch.dtype, rows: int) -> None:
        self.users: set[int] = set()
        self._subspace = subspace
        self._lora = lm.lora_for(subspace)
        self._dtype = dtype
        self._lora.hold()
        scales = [subspace.scaling if name.endswith(".B") else 1.0 for name in subspace.shapes]
        self._scale_P = subspace.per_tensor(torch.tensor(scales, device=lm.device))
        self._kept = self._blank(grown(_FIRST_ROWS, rows))
        self._views: dict[tuple[int, int], dict[str, Tensor]] = {}

    def put(self, row: int, update_P: Tensor | None) -> None:
        if row >= self._kept.shape[0]:
            larger = self._blank(grown(self._kept.shape[0], row + 1))
            larger[: self._kept.shape[0]] = self._kept
            self._kept = larger
            self._views = {}
        if update_P is None:
            self._kept[row].zero_()
            self.users.discard(row)
        else:
            self._kept[row].copy_(update_P.float().to(self._scale_P.device) * self._scale_P)
            self.users.add(row)

    def move(self, source: int, target: int) -> None:
        if source in self.users or target in self.users:
            self._kept[target].copy_(self._kept[source])
        self.users.discard(target)
        if source in self.users:
            self.users.add(target)

    def truncate(self, rows: int) -> None:
        self.users = {row for row in self.users if row < rows}

    def release(self) -> None:
        self._lora.release()

    def applied(self, rows: slice | Tensor) -> AbstractContextManager[None]:
        if isinstance(rows, Tensor):
            return self._lora.applied_scaled(self._subspace.unflatten(self._kept[rows]))
        key = (rows.start, rows.stop)
        if key not in self._views:
            one = rows.stop - rows.start == 1
            self._views[key] = self._subspace.unflatten(self._kept[rows.start] if one else self._kept[rows])
        return self._lora.applied_scaled(self._views[key])

    def _blank(self, rows: int) -> Tensor:
        return torch.zeros(rows, self._subspace.size, dtype=self._dtype, device=self._scale_P.device)
