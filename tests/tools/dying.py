"""Programs that are killed at any line of the code that they run: a number names a moment, always the same one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def traced(files: Sequence[str], fatal: int, end: Callable[[], None] = die) -> list[int]:
    """Count lines in these files (parts of paths) from now on in the list's one number, and call `end` at `fatal`."""
    count = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not any(part in frame.f_code.co_filename for part in files):
            return None
        if event == "line":
            count[0] += 1
            if count[0] == fatal:
                end()
        return trace

    sys.settrace(trace)
    return count
