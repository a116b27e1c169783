"""Progress from workers to the driver, where a person sees it (Ray's own worker logs stay in files)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5


class _Mailbox:
    def __init__(self) -> None:
        self._items: list[Any] = []

    def push(self, item: Any) -> None:
        self._items.append(item)

    def drain(self) -> list[Any]:
        items, self._items = self._items, []
        return items


@contextmanager
def progress_channel(show: Callable[[Any], None] = logger.info) -> Iterator[Any]:
    """An actor handle to give to workers (`handle.push.remote(item)`); `show` gets the items as they come."""
    mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
    stop = threading.Event()

    waiting: list[Any] = []

    def poll() -> None:
        while not stop.wait(_POLL_SECONDS):
            _show_all(mailbox, waiting, show)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        stop.set()
        thread.join()
        _show_all(mailbox, waiting, show)


def _show_all(mailbox: Any, waiting: list[Any], show: Callable[[Any], None]) -> None:
    """Show what has come. An answer that is late on a busy machine is waited for again, not asked for again."""
    try:
        waiting[:] = waiting or [mailbox.drain.remote()]
        if not ray.wait(waiting, timeout=10)[0]:
            return
        items = ray.get(waiting.pop())
    except ray.exceptions.RayError as error:
        waiting.clear()
        logger.debug("no progress to show: %s", error)
        return
    for item in items:
        show(item)
