"""What prompts begin with, kept from one request to the next, so that it is not read again.

When a prompt begins as a recent one did, that beginning is read as a piece of its own and its keys and values are
copied. Those of the base serve, in all blocks, rows without an active update, and in the blocks below the first adapted
one, together with what that block reads, rows whose updates lie above. Those under updates that requests have in
common, such as a static LoRA, serve rows with the same. What a row is given is, to the bit, what a pass has computed.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from regrad.inference.kernels import attention_of
from regrad.inference.passes import Readers, RowCache
from regrad.inference.rows import Row
from regrad.models.blocks import Blocks
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Update, by_subspace
from regrad.models.virtual_tokens import changes_of_virtual_tokens

logger = logging.getLogger(__name__)

_LEAST = 32  # tokens: a piece of its own for fewer costs as much as it saves
_RECENT = 32  # prompts that a new one is compared with
_MOST = 64  # prefixes that are kept, as a new prompt is compared with all of them

Owner = tuple[weakref.ref[Update], ...]
"""The updates, each one object, under which tokens are read; none: they are read by the base."""


@dataclass(eq=False)
class Beginning:
    """How a row begins, with a model in this `state`. `lower`: its lower blocks are the base's.

    Its first tokens are `given` [n, D] to the first adapted block, without the blocks below; `keep` tokens are to be
    kept, `whole` (of all blocks) or of the lower ones, and `entered` is what the first adapted block has read of them,
    by the places at which the pieces begin.
    """

    state: tuple[object, ...]
    owner: Owner
    lower: bool
    given: Tensor | None = None
    keep: int = 0
    whole: bool = False
    entered: dict[int, Tensor] = field(default_factory=dict)

    def left(self, read: int) -> Tensor | None:
        """What the first adapted block is given after so many tokens; None if nothing."""
        return None if self.given is None or read >= len(self.given) else self.given[read:]

    def forget(self, read: int) -> None:
        """What was given is not needed any more once it is read."""
        if self.given is not None and read >= len(self.given):
            self.given = None

    def taken(self, length: int) -> Tensor | None:
        """What the first adapted block has read of all these tokens, if that was noted; nothing more is to be kept."""
        parts = [part for _, part in sorted(self.entered.items())]
        self.entered, self.keep = {}, 0
        return torch.cat(parts) if parts and sum(map(len, parts)) == length else None

    def end(self, read: int) -> int | None:
        """Where a piece that begins at `read` has to end; None: anywhere."""
        ends = (0 if self.given is None else len(self.given), self.keep)
        return min((end for end in ends if end > read), default=None)


@dataclass(frozen=True, eq=False)
class _Prefix:
    """Keys and values [H, n, D] of n tokens in the layers of `pairs`, and what the first adapted block reads [n, D]."""

    ids: list[int]
    owner: Owner
    whole: bool
    pairs: list[tuple[Tensor, Tensor] | None]
    entered: Tensor | None
    bytes: int
    tokens: int

    def serves(self, other: _Prefix) -> bool:
        """Whether the other is not needed beside this."""
        more = self.whole >= other.whole and (self.entered is not None or other.entered is None)
        return more and self.owner == other.owner and self.ids[: len(other.ids)] == other.ids


@dataclass(frozen=True)
class _Recent:
    ids: list[int]
    owner: Owner
    lower: bool


class PrefixCache:
    """Prefixes of at most `most_bytes` (0: off); the one that was not used for longest goes first. For one thread.

    With `blocks` the lower ones are shared, with `whole` the model is. All are dropped when the model is changed in
    place, or its attention, its precision or the values of its virtual tokens.
    """

    def __init__(self, lm: LanguageModel, blocks: Blocks | None, whole: bool, most_bytes: int) -> None:
        self._lm = lm
        self._blocks = blocks if blocks is not None and blocks.lower else None
        self._whole = whole
        self._most_bytes = most_bytes if self._blocks or whole else 0
        self._kept: list[_Prefix] = []  # the last one used is the last
        self._recent: deque[_Recent] = deque(maxlen=_RECENT)
        self._weights = [each for each in lm.model.parameters() if not each.is_inference()] if most_bytes else []
        self._state = self._model_state()

    @property
    def bytes(self) -> int:
        """What the prefixes take."""
        return sum(each.bytes for each in self._kept)

    @property
    def tokens(self) -> int:
        """For how many tokens in a row the same memory is enough."""
        return sum(each.tokens for each in self._kept)

    def clear(self) -> None:
        """Drop everything."""
        self._kept = []
        self._recent.clear()

    def release(self, tokens: int) -> None:
        """Drop prefixes until they take no more than the memory of so many tokens."""
        while self._kept and self.tokens > tokens:
            del self._kept[0]

    def begin(self, rows: Sequence[Row], cache: RowCache) -> None:
        """Give rows that have read nothing what is kept of their beginnings, and say what is to be kept of them."""
        if not self._most_bytes:
            return
        unread = [number for number, row in enumerate(rows) if row.is_prefilling and not row.read]
        if unread and (state := self._model_state()) != self._state:
            self.clear()
            self._state = state
        for number in unread:
            row = rows[number]
            if row.beginning is None or row.beginning.given is None:
                self._begin(number, row, cache)

    def given(self, rows: Sequence[Row], pieces: Sequence[list[int]]) -> Tensor | None:
        """What the first adapted block reads [N, T, D] in a pass of these rows, if all of them are given it."""
        given = [row.given_next for row in rows]
        parts = [one[: len(piece)] for one, piece in zip(given, pieces, strict=True) if one is not None]
        return pad_sequence(parts, batch_first=True) if len(parts) == len(rows) else None

    def watched(self, rows: Sequence[Row]) -> AbstractContextManager[list[Tensor]]:
        """Inside the block, what the first adapted block reads is put into the list, if a row keeps it."""
        if self._blocks and any(_wants_entered(row) for row in rows):
            return self._blocks.watched()
        return nullcontext([])

    def note(
        self, rows: Sequence[Row], pieces: Sequence[list[int]], seen: Sequence[Tensor], readers: Readers | None
    ) -> None:
        """After a pass: remember what was seen of the rows that keep it."""
        for place, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
            if seen and _wants_entered(row) and row.beginning:
                number = readers.number(place) if readers and readers.whole else place
                row.beginning.entered[row.read] = seen[-1][number, : len(piece)].clone()

    def keep(self, number: int, row: Row, cache: RowCache, room: int) -> None:
        """Copy what row `number` has read, if that is what is to be kept, into the memory of at most `room` tokens."""
        beginning = row.beginning
        if beginning is None:
            return
        beginning.forget(row.read)
        if not 0 < beginning.keep == row.read:
            return
        whole, ids, entered = beginning.whole, row.prompt[: row.read], beginning.taken(row.read)
        owner = beginning.owner if whole else ()
        # Another row may have kept it meanwhile; and lower blocks serve only with what comes out of them.
        known = self._longest(ids, len(ids), self._usable(owner, whole))[1]
        if len(ids) - known < _LEAST or not (whole or entered is not None) or beginning.state != self._model_state():
            return
        layers = None if whole or self._blocks is None else self._blocks.first
        size = len(ids) * cache.token_bytes(layers) + (0 if entered is None else entered.nbytes)
        tokens = -(-size // cache.token_bytes())
        if size > self._most_bytes or tokens > room:
            return
        new = _Prefix(ids, owner, whole, [], entered, size, tokens)
        self._kept = [each for each in self._kept if not new.serves(each) and all(ref() for ref in each.owner)]
        while self._kept and (self.bytes + size > self._most_bytes or len(self._kept) >= _MOST):
            del self._kept[0]
        self.release(room - tokens)
        with self._without():
            self._kept.append(replace(new, pairs=cache.copied(number, len(ids), layers)))

    @contextmanager
    def _without(self) -> Iterator[None]:
        """If there is no memory for what the block copies, everything is dropped: no request needs it."""
        try:
            yield
        except RuntimeError as error:  # torch's for want of memory, on any device
            logger.warning("what prompts begin with is not kept any more, as it cannot be copied: %s", error)
            self.clear()

    def _begin(self, number: int, row: Row, cache: RowCache) -> None:
        ids, last = row.prompt, len(row.prompt) - 1  # the last token is always read: what follows it is wanted
        beginning, new = row.beginning or self._beginning(row), row.beginning is None
        row.beginning, owner = beginning, beginning.owner
        own, own_length = self._longest(ids, last, self._usable(owner, whole=True))
        lower, lower_length = None, 0
        if owner and beginning.lower:
            lower, lower_length = self._longest(ids, last, self._usable((), whole=False))
        if new:
            self._plan(ids, last, beginning, own_length, lower_length)
        prefix, length = (own, own_length) if own else (lower, lower_length)
        if prefix is None:
            return
        self._kept.remove(prefix)
        self._kept.append(prefix)
        with self._without():
            cache.put(
                number, length, prefix.pairs if own or self._blocks is None else prefix.pairs[: self._blocks.first]
            )
            self._give(row, beginning, length, prefix.entered, own is not None)

    @staticmethod
    def _give(row: Row, beginning: Beginning, length: int, entered: Tensor | None, whole: bool) -> None:
        """So many tokens are in the cache: of all blocks if `whole`, else of those below the first adapted one."""
        row.given = length
        entered = None if entered is None else entered[:length]
        if not whole:
            beginning.given = entered
            return
        row.read = length
        if entered is not None and beginning.keep:
            beginning.entered[0] = entered

    def _beginning(self, row: Row) -> Beginning:
        spaces = by_subspace(row.in_force)
        lower = not spaces or (self._blocks is not None and all(map(self._blocks.below, spaces)))
        return Beginning(self._state, tuple(map(weakref.ref, row.in_force)), lower)

    def _plan(self, ids: list[int], last: int, beginning: Beginning, own: int, lower: int) -> None:
        """Keep what is as in a recent prompt and not yet kept, and take note of this one."""
        owner = beginning.owner
        if self._whole:
            recent = (each.ids for each in self._recent if each.owner == owner or (not owner and each.lower))
            beginning.keep = _longest_alike(ids, recent, last, own + _LEAST - 1)
            beginning.whole = beginning.keep > 0
        if not beginning.keep and beginning.lower and self._blocks and owner:
            recent = (each.ids for each in self._recent if each.lower)
            beginning.keep = _longest_alike(ids, recent, last, lower + _LEAST - 1)
        self._recent.append(_Recent(ids, owner, beginning.lower))

    def _usable(self, owner: Owner, whole: bool) -> list[_Prefix]:
        if whole:
            return [each for each in self._kept if each.whole and each.owner == owner]
        return [each for each in self._kept if not each.owner and each.entered is not None]

    @staticmethod
    def _longest(ids: list[int], last: int, usable: Iterable[_Prefix]) -> tuple[_Prefix | None, int]:
        """The prefix that has most of the beginning of these tokens, up to `last`, and how many."""
        best, length = None, _LEAST - 1
        for each in usable:
            if alike := _alike(ids, each.ids, last, length):
                best, length = each, alike
        return best, length if best else 0

    def _model_state(self) -> tuple[object, ...]:
        """Changes when the model does: what is computed depends on no more than this and the tokens."""
        written = sum(each._version for each in self._weights)  # counts what is written in place, as optimizers do
        return written, self._lm.compute_dtype, attention_of(self._lm), changes_of_virtual_tokens(self._lm)


def _wants_entered(row: Row) -> bool:
    beginning = row.beginning
    return beginning is not None and beginning.keep > row.read and not (beginning.whole and beginning.owner)


def _longest_alike(ids: list[int], others: Iterable[list[int]], last: int, known: int) -> int:
    length = known
    for other in others:
        length = _alike(ids, other, last, length) or length
    return length if length > known else 0


def _alike(one: list[int], other: list[int], last: int, known: int) -> int:
    """How many tokens both begin with, at most `last`; 0 if no more than `known`."""
    most = min(len(one), len(other), last)
    # Most pairs are told apart by the first comparison.
    if most <= known or one[known] != other[known] or one[:known] != other[:known]:
        return 0
    return next((place for place in range(known + 1, most) if one[place] != other[place]), most)
