"""The engine on its own thread, so that servers and notebooks can call it from any thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from regrad.errors import ModelError
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingEvent, DecodingListener, DecodingRequest, Finished, Row

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


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

    def generate(self, request: DecodingRequest) -> Finished:
        """Submit a request and wait for its answer."""
        answer: Future[Finished] = Future()

        def listen(event: DecodingEvent) -> None:
            if isinstance(event, Exception):
                answer.set_exception(event)
            elif isinstance(event, Finished):
                answer.set_result(event)

        self.submit(request, listen)
        return answer.result()

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
