"""Waiting for the person, or the process manager, to say stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType


def wait_until_stopped() -> None:
    """Return at the first Ctrl-C or SIGTERM."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stopped.wait(0.5):
            pass
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
