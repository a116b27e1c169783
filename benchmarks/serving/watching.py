"""The server's processes from outside: what they compute and what memory they hold."""

from __future__ import annotations

from collections.abc import Iterator

import psutil


def processor_seconds() -> dict[int, float]:
    """By process, of all that this one started: what they have computed since their start."""
    return {child.pid: sum(child.cpu_times()[:2]) for child in _alive()}


def spent(before: dict[int, float]) -> float:
    """Seconds that the processes have computed since then; what began and ended in between is not in it."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in processor_seconds().items())


def resident_bytes() -> tuple[int, int]:
    """Memory of all processes that this one started: pages shared by several counted for each, and not counted."""
    held = [child.memory_info() for child in _alive()]
    return sum(item.rss for item in held), sum(item.rss - item.shared for item in held)


def _alive() -> Iterator[psutil.Process]:
    for child in psutil.Process().children(recursive=True):
        try:
            with child.oneshot():
                yield child
        except psutil.Error:
            continue
