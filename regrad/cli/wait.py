"""Waiting for the person, or the process manager, to say stop."""

from __future__ import annotations

import signal
import time
from types import FrameType

_LOOK_SECONDS = 0.2


def wait_until_stopped() -> None:
    """Return at the first Ctrl-C or SIGTERM; more of them at the same time do no harm."""
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped  # no lock: a second signal may come inside this very function
        stopped = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stopped:
            time.sleep(_LOOK_SECONDS)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
