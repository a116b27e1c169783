"""The server's processes from outside: what they compute and what memory they hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress

import psutil

_REPLICA = re.compile(r"ServeReplica:[^:]*:([A-Za-z_]+)")


def processor_seconds() -> dict[int, float]:
    """By process, of all that this one started: what they have computed since their start."""
    return {child.pid: sum(child.cpu_times()[:2]) for child in _alive()}


def spent_by_role(before: Mapping[int, float]) -> dict[str, float]:
    """Seconds that the processes have computed since then; what began and ended in between is not in it.

    By Serve's deployments, whose replicas are known by their processes' titles; all others are `rest`. What a replica
    has started, such as a search engine, counts as the replica.
    """
    found: Counter[str] = Counter()
    for child in _alive():
        with suppress(psutil.Error):
            found[_role(child)] += sum(child.cpu_times()[:2]) - before.get(child.pid, 0.0)
    return dict(found)


def _role(process: psutil.Process) -> str:
    for one in (process, *process.parents()):
        title = " ".join(one.cmdline()[:1])
        if match := _REPLICA.search(title):
            return match[1]
    return "rest"


def private_bytes(started: bool = True) -> int:
    """Memory of this process, and of all that it `started`, without pages that others can share."""
    held = [process.memory_info() for process in (psutil.Process(), *(_alive() if started else ()))]
    return sum(item.rss - getattr(item, "shared", 0) for item in held)  # only Linux says what is shared


def _alive() -> Iterator[psutil.Process]:
    for child in psutil.Process().children(recursive=True):
        try:
            with child.oneshot():
                yield child
        except psutil.Error:
            continue
