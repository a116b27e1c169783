"""Progress lines from workers to the driver, where a person sees them (Ray's own worker logs stay in files)."""

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
        self._lines: list[str] = []

    def push(self, line: str) -> None:
        self._lines.append(line)

    def drain(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


@contextmanager
def progress_channel(show: Callable[[str], None] = logger.info) -> Iterator[Any]:
    """An actor handle to give to workers (`handle.push.remote(line)`); lines are shown as they come."""
    mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(_POLL_SECONDS):
            _show_all(mailbox, show)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        stop.set()
        thread.join()
        _show_all(mailbox, show)


def _show_all(mailbox: Any, show: Callable[[str], None]) -> None:
    try:
        lines = ray.get(mailbox.drain.remote(), timeout=10)
    except ray.exceptions.RayError as error:
        logger.debug("no progress to show: %s", error)
        return
    for line in lines:
        show(line)
