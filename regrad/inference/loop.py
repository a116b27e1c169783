"""The engine on a thread of its own, so that servers and notebooks can ask it from anywhere."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from regrad.errors import ModelError
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest, Event, Finished, Listener, Row

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
_ENDED = "decoding has ended"


class Ticket:
    """A request that was handed in; `cancel` takes it out of the batch before the next step."""

    def __init__(self) -> None:
        self._row: Row | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Nobody wants the answer any more. The listener hears nothing further."""
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
        self._closed, self._lock = False, threading.Lock()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """Requests that wait, and requests in the batch."""
        return self._engine.waiting + self._todo.qsize(), self._engine.active

    def check(self, stall_seconds: float) -> None:
        """Raise `ModelError` if the thread has ended, or is busy with one and the same thing for so long."""
        if not self._thread.is_alive():
            raise ModelError("the decoding thread has ended")
        since = self._busy_since
        if since is not None and time.monotonic() - since > stall_seconds:
            raise ModelError(f"one decoding step has been running for more than {stall_seconds:.0f} s")

    def submit(self, request: DecodingRequest, listener: Listener) -> Ticket:
        """Hand in a request. What is wrong with it, the listener hears as an error."""
        ticket = Ticket()

        def enter() -> None:
            try:
                ticket.entered(self._engine.submit(request, listener))
            except Exception as error:
                _tell(listener, error)

        if not self._put(enter):
            _tell(listener, ModelError(_ENDED))
        return ticket

    def generate(self, request: DecodingRequest) -> Finished:
        """Wait for one answer."""
        answer: Future[Finished] = Future()

        def listen(event: Event) -> None:
            if isinstance(event, Exception):
                answer.set_exception(event)
            elif isinstance(event, Finished):
                answer.set_result(event)

        self.submit(request, listen)
        return answer.result()

    def run(self, work: Callable[[], Result]) -> Future[Result]:
        """Run something else with the model, between two steps."""
        future: Future[Result] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        if not self._put(do):
            future.set_exception(ModelError(_ENDED))
        return future

    def close(self) -> None:
        """Stop after the step at hand; what is not finished ends with an error."""
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
            self._busy_since = None
            for work in self._received(wait=not busy):
                if work is None:
                    return self._engine.fail(ModelError(_ENDED), waiting=True)
                self._busy_since = time.monotonic()
                work()
            self._busy_since = time.monotonic()
            busy = self._step()

    def _received(self, wait: bool) -> list[Any]:
        """All that has come; if there is nothing else to do, wait for something."""
        received = [self._todo.get()] if wait else []
        while True:
            try:
                received.append(self._todo.get_nowait())
            except queue.Empty:
                return received

    def _step(self) -> bool:
        try:
            return self._engine.step()
        except Exception as error:
            logger.exception("a decoding step failed")
            self._engine.fail(error)
            return True


def _tell(listener: Listener, error: Exception) -> None:
    try:
        listener(error)
    except Exception:
        logger.exception("who asked cannot be told of: %s", error)
