"""Iteration-level batching over requests with different updates, and the check that it decodes a model correctly.

At every step waiting requests join, prompts are read in pieces, every other row gets one token, and finished rows
leave. An update is an input of the pass (see `BatchedLora`): the weights are never written, and nothing computed under
one update is used under another, as each row has its own keys and values. Rows may have updates in different subspaces,
and in several at once (see `RowUpdates`).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from weakref import WeakSet

import torch
from torch import Tensor, nn

from regrad.errors import ModelError
from regrad.inference.row_state import RowCache, RowUpdates, read_pieces
from regrad.inference.rows import DecodingListener, DecodingRequest, Row
from regrad.models.loading import LanguageModel
from regrad.models.subspace import by_subspace

logger = logging.getLogger(__name__)

# The check reads two rows in pieces that end here: in pieces of different lengths, then token by token, one row longer.
_CUTS = ((4, 6, 7, 8), (3, 5, 6))
_SHORT_WINDOW = 3
# Relative errors of logits. Other pieces are other sums: 1e-6 in float32, about 1e-2 in bfloat16. A lost state or a
# wrong mask costs far more.
_MOST_EXACT = 1e-2
_MOST_ROUNDED = 0.15
_VERIFIED: WeakSet[nn.Module] = WeakSet()


class Engine:
    """Decodes up to `max_rows` requests together; call `step` until there is nothing to do. For one thread.

    `max_cached_tokens` bounds rows times the longest row, for which keys and values are kept; a request that does not
    fit beside the others waits, and a single one is always taken. A pass reads at most `prefill_tokens` of prompts.
    Raises `ModelError` for a model that it would decode differently from the model itself (see `verify_decoding`).
    """

    def __init__(
        self, lm: LanguageModel, max_rows: int = 32, max_cached_tokens: int = 1 << 20, prefill_tokens: int = 2048
    ) -> None:
        self._lm = lm
        self._max_rows = max_rows
        self._max_cached = max_cached_tokens
        self._prefill_tokens = prefill_tokens
        self._cache = RowCache(int(lm.text_config.num_hidden_layers), max_cached_tokens)
        self._windows = lm.architecture.windows(lm.text_config)
        verify_decoding(lm)
        self._updates = RowUpdates(lm)
        self._rows: list[Row] = []
        self._waiting: deque[Row] = deque()

    @property
    def waiting(self) -> int:
        """Requests that have not joined yet."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Requests in the batch."""
        return len(self._rows)

    def submit(self, request: DecodingRequest, listener: DecodingListener) -> Row:
        """Queue a request; `listener` receives its text and its end, from inside `step`.

        Raises `PromptTooLong`, and `ModelError` for an update that does not fit the model or for two in one subspace.
        """
        for subspace in by_subspace(request.updates):
            self._lm.lora_for(subspace)
        row = Row(self._lm, request, listener)
        self._waiting.append(row)
        return row

    @torch.inference_mode()
    def step(self) -> bool:
        """One step; False if there was nothing to do."""
        # 1. Cancelled requests leave, waiting ones join.
        self._remove(lambda row: row.cancelled)
        self._waiting = deque(row for row in self._waiting if not row.cancelled)
        self._join()
        if not self._rows:
            self._cache.clear()
            return False

        # 2. Of the prompts that are not read yet, the first whose pieces, padded to the longest, keep within the limit.
        prefilling: list[int] = []
        longest = 0
        for number, row in enumerate(self._rows):
            if row.is_prefilling:
                longest = max(longest, len(row.next_tokens(self._prefill_tokens)))
                if prefilling and longest * (len(prefilling) + 1) > self._prefill_tokens:
                    break
                prefilling.append(number)
        if prefilling:
            self._pass(prefilling)

        # 3. One token for every other row; those at their end leave.
        decoding = [i for i, row in enumerate(self._rows) if not (row.is_prefilling or row.reason or row.cancelled)]
        if decoding:
            self._pass(decoding)
        for row in [row for row in self._rows if row.reason]:
            row.finish()
        self._remove(lambda row: row.reason is not None or row.cancelled)
        return True

    def fail(self, error: Exception, waiting: bool = False) -> None:
        """End every request in the batch with this error; with `waiting`, also those that wait."""
        failed = [*self._rows, *(self._waiting if waiting else ())]
        self._rows = []
        if waiting:
            self._waiting.clear()
        self._cache.clear()
        self._updates.truncate(0)
        for row in failed:
            row.tell(error)

    def _join(self) -> None:
        while self._waiting and len(self._rows) < self._max_rows:
            longest = max([row.most_tokens for row in self._rows] + [self._waiting[0].most_tokens])
            if self._rows and (len(self._rows) + 1) * longest > self._max_cached:
                break
            row = self._waiting.popleft()
            row.entered = time.perf_counter()
            self._rows.append(row)
            self._cache.reserve(len(self._rows), longest)
            self._updates.put(len(self._rows) - 1, by_subspace(row.request.updates))
        for row in self._rows:
            row.largest_batch = max(row.largest_batch, len(self._rows))

    def _pass(self, numbers: list[int]) -> None:
        """One forward pass of these rows: the next piece of each prompt, or the last token.

        A row that cannot be run ends with its error, and those beside it go on.
        """
        rows = [self._rows[i] for i in numbers]
        pieces = [row.next_tokens(self._prefill_tokens) for row in rows]
        try:
            scores_NV = self._scores(numbers, pieces)
        except Exception as error:
            if len(rows) == 1:
                rows[0].fail(error)
                return
            # One of them may be the cause. A pass that failed is repeated as it was: it has read nothing yet.
            logger.warning("a pass of %d requests failed, they go on one by one: %s", len(rows), error)
            for number in numbers:
                self._pass([number])
            return
        best = scores_NV.argmax(-1).tolist()
        for i, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
            row.read += len(piece)
            if not row.is_prefilling:
                row.take(scores_NV[i], best[i], self._lm.end_ids)

    def _scores(self, numbers: list[int], pieces: list[list[int]]) -> Tensor:
        """Logits [N, V] after the last token of each piece."""
        # Consecutive rows are a slice of what is kept, which copies nothing.
        rows: slice | Tensor = slice(numbers[0], numbers[-1] + 1)
        if numbers[-1] - numbers[0] + 1 != len(numbers):
            rows = torch.tensor(numbers, device=self._lm.device)
        starts = [self._rows[i].read for i in numbers]
        with self._updates.applied(numbers, rows):
            return read_pieces(self._lm, self._cache, self._windows, rows, pieces, starts)

    def _remove(self, gone: Callable[[Row], bool]) -> None:
        """Take rows out of the batch."""
        staying = [number for number, row in enumerate(self._rows) if not gone(row)]
        size = len(staying)
        # The last of those that stay fill the gaps, so that the rows in use are always the first ones.
        gaps = sorted(set(range(size)) - set(staying))
        for source, target in zip([number for number in staying if number >= size], gaps, strict=True):
            self._rows[target] = self._rows[source]
            self._cache.move(source, target)
            self._updates.move(source, target)
        self._cache.blank(size, len(self._rows))
        self._updates.truncate(size)
        del self._rows[size:]


@torch.inference_mode()
def verify_decoding(lm: LanguageModel) -> None:
    """Raise `ModelError` if the engine's logits are not the model's own; does nothing for a model that has passed."""
    # A model of a new kind can keep something beside keys and values, or place or mask its tokens in another way, and
    # would then answer fluently and wrongly. This costs a few passes over a dozen tokens, once for a model in memory.
    if lm.model in _VERIFIED:
        return
    _compare(lm)
    # A model's real window is too long to read beyond it here. Its masks are made from its configuration, in each pass.
    if any(lm.architecture.windows(lm.text_config).values()):
        with _short_window(lm):
            _compare(lm)
    _VERIFIED.add(lm.model)


def _compare(lm: LanguageModel) -> None:
    vocabulary = int(lm.text_config.vocab_size)
    rows = [[(3 + 7 * row + 5 * i) % vocabulary for i in range(cuts[-1])] for row, cuts in enumerate(_CUTS)]
    own = []
    for ids, cuts in zip(rows, _CUTS, strict=True):
        logits_TV = lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0]
        own.append(logits_TV[torch.tensor(cuts, device=lm.device) - 1])
    own_MV = torch.cat(own).double()
    try:
        error_MV = _piecewise_logits(lm, rows).double() - own_MV
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the decoding engine cannot run {type(lm.model).__name__}: {type(error).__name__}: {reason}; choose "
            "another model",
            code="not_decodable",
            model=type(lm.model).__name__,
        ) from error
    spread = (own_MV - own_MV.mean(-1, keepdim=True)).norm().clamp_min(1e-12)
    relative = float(error_MV.norm() / spread)
    exact = lm.compute_dtype in (torch.float32, torch.float64)
    if not relative <= (_MOST_EXACT if exact else _MOST_ROUNDED):
        raise ModelError(
            f"the decoding engine does not reproduce the logits of {type(lm.model).__name__} (relative error "
            f"{relative:.2g}), so its answers would be wrong; choose another model",
            code="decoded_wrongly",
            model=type(lm.model).__name__,
            relative_error=relative,
        )


def _piecewise_logits(lm: LanguageModel, rows: list[list[int]]) -> Tensor:
    """The engine's logits [M, V] at the end of each piece, the rows read together in pieces."""
    cache = RowCache(int(lm.text_config.num_hidden_layers), 1 << 10)
    cache.reserve(len(_CUTS), max(cuts[-1] for cuts in _CUTS))
    windows = lm.architecture.windows(lm.text_config)
    spans = [list(pairwise((0, *cuts))) for cuts in _CUTS]
    found: list[list[Tensor]] = [[] for _ in rows]
    for step in range(max(map(len, spans))):
        active = [row for row in range(len(rows)) if step < len(spans[row])]
        pieces = [rows[row][slice(*spans[row][step])] for row in active]
        starts = [spans[row][step][0] for row in active]
        # The longer row is the first, so that those still active are the first of the cache.
        scores = read_pieces(lm, cache, windows, slice(0, len(active)), pieces, starts)
        for row, score in zip(active, scores, strict=True):
            found[row].append(score)
    return torch.stack([score for scores in found for score in scores])


@contextmanager
def _short_window(lm: LanguageModel) -> Iterator[None]:
    """Inside the block, the layers that slide see `_SHORT_WINDOW` tokens."""
    # A model's modules may have configurations of their own beside the whole's.
    configs = {id(each): each for each in (lm.text_config, *(getattr(m, "config", None) for m in lm.model.modules()))}
    sliding = [(each, each.sliding_window) for each in configs.values() if getattr(each, "sliding_window", None)]
    try:
        for config, _ in sliding:
            config.sliding_window = _SHORT_WINDOW
        yield
    finally:
        for config, window in sliding:
            config.sliding_window = window
