"""Iteration-level batching over requests with different updates.

At every step waiting requests join, prompts are read in pieces, every other row gets one token, and rows that are at
their end leave. An update is an input of the pass (see `BatchedLora`): the weights are never written, and nothing that
was computed under one update is used under another, as each row has keys and values of its own. Rows may have updates
in different subspaces, and in several at once (see `RowUpdates`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from regrad.inference.cache import RowCache
from regrad.inference.forward import read_pieces
from regrad.inference.rows import DecodingRequest, Listener, Row
from regrad.inference.updates import RowUpdates
from regrad.inference.verification import verify_decoding
from regrad.models.loading import LanguageModel
from regrad.models.subspace import by_subspace


class Engine:
    """Decodes up to `max_rows` requests together; call `step` until there is nothing to do. For one thread.

    `max_cached_tokens` bounds rows times the longest row, which is what keys and values take; a request that does not
    fit beside the others waits, and one alone is always taken. A pass reads at most `prefill_tokens` of prompts.
    Raises `ModelError` for a model that it would not decode as the model itself does (see `verify_decoding`).
    """

    def __init__(
        self, lm: LanguageModel, max_rows: int = 32, max_cached_tokens: int = 1 << 20, prefill_tokens: int = 2048
    ) -> None:
        self._lm, self._max_rows = lm, max_rows
        self._max_cached, self._prefill_tokens = max_cached_tokens, prefill_tokens
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

    def submit(self, request: DecodingRequest, listener: Listener) -> Row:
        """Queue a request; `listener` hears of its text and its end, from inside `step`.

        Raises `PromptTooLong`, and `ModelError` for an update that does not fit the model, or for two in one subspace.
        """
        for subspace in by_subspace(request.updates):
            self._lm.lora_for(subspace)
        row = Row(self._lm, request, listener)
        self._waiting.append(row)
        return row

    @torch.inference_mode()
    def step(self) -> bool:
        """One step; False if there was nothing to do."""
        self._remove(lambda row: row.cancelled)
        self._waiting = deque(row for row in self._waiting if not row.cancelled)
        self._join()
        if not self._rows:
            self._cache.clear()
            return False
        prefilling = [i for i, row in enumerate(self._rows) if row.is_prefilling]
        if prefilling:
            self._pass(self._affordable(prefilling))
        decoding = [i for i, row in enumerate(self._rows) if not row.is_prefilling and row.reason is None]
        if decoding:
            self._pass(decoding)
        for row in [row for row in self._rows if row.reason]:
            row.finish()
        self._remove(lambda row: row.reason is not None)
        return True

    def fail(self, error: Exception, waiting: bool = False) -> None:
        """End every request in the batch, as a pass over it has failed; with `waiting`, also those that wait."""
        rows, self._rows = self._rows, []
        if waiting:
            rows, self._waiting = [*rows, *self._waiting], deque()
        self._cache.clear()
        self._updates.truncate(0)
        for row in rows:
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

    def _affordable(self, numbers: list[int]) -> list[int]:
        """The first of these rows whose pieces of prompt, padded to the longest, keep within the limit."""
        chosen: list[int] = []
        longest = 0
        for number in numbers:
            longest = max(longest, len(self._rows[number].next_tokens(self._prefill_tokens)))
            if chosen and longest * (len(chosen) + 1) > self._prefill_tokens:
                break
            chosen.append(number)
        return chosen

    def _pass(self, numbers: list[int]) -> None:
        """One forward pass of these rows: the next piece of each prompt, or the last token."""
        rows = [self._rows[i] for i in numbers]
        pieces = [row.next_tokens(self._prefill_tokens) for row in rows]
        scores_NV = self._scores(numbers, pieces)
        best = scores_NV.argmax(-1).tolist()
        for i, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
            row.read += len(piece)
            if not row.is_prefilling:
                row.write(row.choose(scores_NV[i]) if row.request.temperature > 0 else best[i], self._lm.end_ids)

    def _scores(self, numbers: list[int], pieces: list[list[int]]) -> Tensor:
        """Logits [N, V] after the last token of each piece."""
        which, starts = self._which(numbers), [self._rows[i].read for i in numbers]
        with self._updates.applied(numbers, which):
            return read_pieces(self._lm, self._cache, self._windows, which, pieces, starts)

    def _which(self, numbers: list[int]) -> slice | Tensor:
        """As a slice, which copies nothing, if they are consecutive."""
        if numbers[-1] - numbers[0] + 1 == len(numbers):
            return slice(numbers[0], numbers[-1] + 1)
        return torch.tensor(numbers, device=self._lm.device)

    def _remove(self, gone: Callable[[Row], bool]) -> None:
        """Take rows out; the last of those that stay fill the gaps, so that the batch stays in one piece."""
        staying = [number for number, row in enumerate(self._rows) if not gone(row)]
        size = len(staying)
        gaps = sorted(set(range(size)) - set(staying))
        for source, target in zip([number for number in staying if number >= size], gaps, strict=True):
            self._rows[target] = self._rows[source]
            self._cache.move(source, target)
            self._updates.move(source, target)
        self._cache.blank(size, len(self._rows))
        self._updates.truncate(size)
        del self._rows[size:]
