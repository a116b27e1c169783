"""Iteration-level batching over requests with different updates: the engine, and the thread that runs its steps.

At every step waiting requests join, prompts are read in pieces, every other row gets one token, and finished rows
leave. An update is an input of the pass (see `BatchedLora`): the weights are never written, and nothing computed under
one update is used under another, as each row has its own keys and values. Rows may have updates in different subspaces,
and in several at once (see `RowUpdates`). An update that acts on the answer is applied when all of its prompt but
the last token has been read. Prompts that begin alike are read once as far as no update reaches (see `SharedReading`).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor

from regrad.errors import ModelError
from regrad.inference.kernels import Kernels
from regrad.inference.passes import RowCache, SharedReading, read_pieces
from regrad.inference.prefixes import PrefixCache
from regrad.inference.rows import DecodingListener, DecodingRequest, Drafts, Row
from regrad.inference.verification import verify_decoding
from regrad.models.loading import LanguageModel
from regrad.models.lora import RowUpdates
from regrad.models.subspace import by_subspace

logger = logging.getLogger(__name__)
# Beyond so many tokens a pass takes longer with each, and a drafted token that is not chosen was read for nothing.
_DRAFTING_TOKENS = 16
Result = TypeVar("Result")


class Engine:
    """Decodes up to `max_rows` requests together; call `step` until there is nothing to do. For one thread.

    `max_cached_tokens` bounds rows times the longest row, for which keys and values are kept; a request that does not
    fit beside the others waits, and a single one is always taken. A pass reads at most `prefill_tokens` of prompts.
    Without `kernels` it takes the fastest that give the model's own logits. With `draft_tokens` a pass also reads up to
    so many drafted tokens of a row (see `Drafts`), while few rows are decoded: answers are the same in fewer passes.
    With `share_prompts` what prompts begin with alike is read once as far as no update reaches; with `prefix_bytes` so
    much of it is kept for later requests (see `PrefixCache`), within `max_cached_tokens`, and gives way to rows.
    Raises `ModelError` for a model that it would decode differently from the model itself (see `verify_decoding`).
    """

    def __init__(
        self,
        lm: LanguageModel,
        max_rows: int = 32,
        max_cached_tokens: int = 1 << 20,
        prefill_tokens: int = 2048,
        kernels: Kernels | None = None,
        draft_tokens: int = 0,
        share_prompts: bool = True,
        prefix_bytes: int = 0,
    ) -> None:
        self._lm = lm
        self._max_rows = max_rows
        self._max_cached = max_cached_tokens
        self._prefill_tokens = prefill_tokens
        self._draft_tokens = draft_tokens
        self._cache = RowCache(int(lm.text_config.num_hidden_layers), max_cached_tokens)
        self._windows = lm.architecture.windows(lm.text_config)
        verified = verify_decoding(lm)
        self._kernels = kernels or verified.kernels
        blocks = lm.blocks if verified.shares and share_prompts else None
        whole = verified.shares_whole and share_prompts
        self._shared = SharedReading(blocks, whole)
        self._prefixes = PrefixCache(lm, blocks, whole, prefix_bytes)
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

    @property
    def prefix_bytes(self) -> int:
        """What is kept of prompts for later requests takes so many."""
        return self._prefixes.bytes

    def submit(self, request: DecodingRequest, listener: DecodingListener) -> Row:
        """Queue a request; `listener` receives its text and its end, from inside `step`.

        Raises `PromptTooLong`, and `ModelError` for an update that does not fit the model or for two in one subspace.
        """
        for subspace in by_subspace(request.updates):
            self._lm.lora_for(subspace)
        row = Row(self._lm, request, listener)
        if self._draft_tokens:
            row.drafts = Drafts([*map(self._lm.encode, request.sources), row.prompt])
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
        self._prefixes.begin(self._rows, self._cache)

        # 2. Of the prompts that are not read yet, the first whose pieces, padded to the longest, keep within the limit.
        prefilling = self._shared.choose(self._rows, self._prefill_tokens)
        if prefilling:
            self._prefill(prefilling)

        # 3. One token for every other row; those at their end leave.
        decoding = [i for i, row in enumerate(self._rows) if not (row.is_prefilling or row.reason or row.cancelled)]
        if decoding:
            self._activate(decoding)
            self._pass(decoding)
        for row in [row for row in self._rows if row.reason]:
            row.finish()
        self._remove(lambda row: row.reason is not None or row.cancelled)
        return True

    def close(self) -> None:
        """Free what is kept for rows, and leave the model as it was."""
        self._cache.clear()
        self._prefixes.clear()
        self._updates.release()

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
            needed = (len(self._rows) + 1) * longest
            if self._rows and needed > self._max_cached:
                break
            self._prefixes.release(self._max_cached - needed)
            self._cache.most = self._max_cached - self._prefixes.tokens
            row = self._waiting.popleft()
            row.entered = time.perf_counter()
            self._rows.append(row)
            self._cache.reserve(len(self._rows), longest)
            self._updates.put(len(self._rows) - 1, by_subspace(row.in_force))
        for row in self._rows:
            row.largest_batch = max(row.largest_batch, len(self._rows))

    def _prefill(self, numbers: list[int]) -> None:
        """The next piece of these rows' prompts; where that is cheaper, what all begin with in a pass of its own."""
        given = [i for i in numbers if self._rows[i].given_next is not None]
        if given:
            self._pass(given)
            numbers = [i for i in numbers if i not in given]
        common = self._shared.common_tokens([self._rows[i] for i in numbers], self._prefill_tokens)
        if common:
            self._pass(numbers, common)
            # What is left of a prompt may be more than what was chosen, if that was to end where it is kept.
            chosen = self._shared.choose(self._rows, self._prefill_tokens)
            numbers = [i for i in numbers if i in chosen and not self._rows[i].cancelled]
        if numbers:
            self._pass(numbers)

    def _activate(self, numbers: list[int]) -> None:
        """Apply the updates of these rows that act on the answer: what they read next is the prompt's end."""
        for number in numbers:
            row = self._rows[number]
            if row.awaits_updates:
                row.in_force = row.request.updates
                self._updates.put(number, by_subspace(row.in_force))

    def _pass(self, numbers: list[int], most: int | None = None) -> None:
        """One forward pass of these rows: the next piece of each prompt (of `most` tokens), or the last token.

        A row that cannot be run ends with its error, and those beside it go on.
        """
        rows = [self._rows[i] for i in numbers]
        most_drafted = min(self._draft_tokens, _DRAFTING_TOKENS // len(rows) - 1)
        pieces = [row.next_tokens(most or self._prefill_tokens, most_drafted) for row in rows]
        try:
            scores_MV = self._scores(numbers, pieces)
        except Exception as error:
            if len(rows) == 1:
                rows[0].fail(error)
                return
            # One of them may be the cause. A pass that failed is repeated as it was: it has read nothing yet.
            logger.warning("a pass of %d requests failed, they continue one by one: %s", len(rows), error)
            for number in numbers:
                self._pass([number], most)
            return
        # numpy's argmax has vector instructions, torch's on a CPU has none; both take the first of equal ones.
        best = (scores_MV.numpy() if scores_MV.device.type == "cpu" else scores_MV).argmax(-1).tolist()
        start = 0
        for number, row, piece in zip(numbers, rows, pieces, strict=True):
            draft = [] if row.is_prefilling else piece[1:]
            end = start + 1 + len(draft)
            row.read += len(piece) - len(draft)
            self._prefixes.keep(number, row, self._cache, self._max_cached - self._cache.rows * self._cache.tokens)
            if row.has_read_prompt:
                row.take(scores_MV[start:end], best[start:end], self._lm.end_ids, draft)
            start = end

    def _scores(self, numbers: list[int], pieces: list[list[int]]) -> Tensor:
        """Logits [M, V] after the last token of each piece of a prompt, and after every token of the others."""
        # Consecutive rows are a slice of what is kept, which copies nothing.
        rows: slice | Tensor = slice(numbers[0], numbers[-1] + 1)
        if numbers[-1] - numbers[0] + 1 != len(numbers):
            rows = torch.tensor(numbers, device=self._lm.device)
        reading = [self._rows[i] for i in numbers]
        starts = [row.read for row in reading]
        scored = [1 if row.is_prefilling else len(piece) for row, piece in zip(reading, pieces, strict=True)]
        given_NTD = self._prefixes.given(reading, pieces)
        readers = None if given_NTD is not None else self._shared.readers(reading, pieces)
        with self._updates.applied(numbers, rows), self._prefixes.watched(reading) as seen:
            scores_MV = read_pieces(
                self._lm, self._cache, self._windows, rows, pieces, starts, self._kernels, scored, readers, given_NTD
            )
        self._prefixes.note(reading, pieces, seen, readers)
        return scores_MV

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


class Ticket:
    """A submitted request; `cancel` takes it out of the batch before the next step."""

    # Either side may come first: `cancel` is called on the caller's thread, `entered` on the loop's.

    def __init__(self) -> None:
        self._row: Row | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """The answer is no longer wanted; the listener receives nothing further."""
        self._cancelled = True
        if self._row is not None:
            self._row.cancelled = True

    def entered(self, row: Row) -> None:
        """The loop has taken the request."""
        self._row = row
        if self._cancelled:
            row.cancelled = True


class DecodingLoop:
    """Runs the engine's steps whenever there is something to do. Listeners are called on its thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """How many requests wait, and how many are in the batch."""
        return self._engine.waiting + self._todo.qsize(), self._engine.active

    @property
    def prefix_bytes(self) -> int:
        """As `Engine.prefix_bytes`."""
        return self._engine.prefix_bytes

    def check(self, stall_seconds: float) -> None:
        """Raise `ModelError` if the thread has ended, or has been busy with one step for more than `stall_seconds`."""
        if not self._thread.is_alive():
            raise ModelError("the decoding thread has ended", code="thread_ended")
        since = self._busy_since
        if since is not None and time.monotonic() - since > stall_seconds:
            raise ModelError(
                f"one decoding step has been running for more than {stall_seconds:.0f} s",
                code="stalled",
                seconds=stall_seconds,
            )

    def submit(self, request: DecodingRequest, listener: DecodingListener) -> Ticket:
        """Hand over a request. If it is invalid, the listener receives the error."""
        ticket = Ticket()

        def enter() -> None:
            try:
                ticket.entered(self._engine.submit(request, listener))
            except Exception as error:
                _report(listener, error)

        if not self._put(enter):
            _report(listener, _ended())
        return ticket

    def run(self, work: Callable[[], Result]) -> Future[Result]:
        """Run other work on the model, between two steps."""
        future: Future[Result] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        if not self._put(do):
            future.set_exception(_ended())
        return future

    def close(self) -> None:
        """Stop after the current step; requests that are not finished end with an error."""
        with self._lock:
            self._closed = True
            self._todo.put(None)
        self._thread.join()

    def _put(self, work: Callable[[], None]) -> bool:
        with self._lock:
            if not self._closed:
                self._todo.put(work)
            return not self._closed

    def _run(self) -> None:
        busy = False
        while True:
            # 1. Take all that has been put; wait only if there is nothing to decode.
            self._busy_since = None
            received = [] if busy else [self._todo.get()]
            while not self._todo.empty():  # this thread alone takes from it
                received.append(self._todo.get())
            for work in received:
                if work is None:
                    return self._engine.fail(_ended(), waiting=True)
                self._busy_since = time.monotonic()
                work()

            # 2. One step. A pass that fails ends the requests in the batch, never the thread.
            self._busy_since = time.monotonic()
            try:
                busy = self._engine.step()
            except Exception as error:
                logger.exception("a decoding step failed")
                self._engine.fail(error)
                busy = True


def _ended() -> ModelError:
    return ModelError("decoding has ended", code="decoding_ended")


def _report(listener: DecodingListener, error: Exception) -> None:
    try:
        listener(error)
    except Exception:
        logger.exception("a listener failed while it was given the error: %s", error)
