"""Progress from workers to the driver, where a person sees it; Ray's own worker logs stay in files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ray_jobs.cluster import repeated, this_node
from regrad.text import counted, readable_duration

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_LINE_SECONDS = 5.0
_LEAST_SECONDS = 1.0

Remaining = Callable[[], tuple[float, int]]
"""The seconds left, at least, and the number of methods that were not timed yet."""


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
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=this_node())(_Mailbox).remote()
    waiting: list[Any] = []
    try:
        with repeated(partial(_show_all, mailbox, waiting, show), _POLL_SECONDS):
            yield mailbox
    finally:
        _show_all(mailbox, waiting, show)
        if ray.is_initialized():
            ray.kill(mailbox)  # else its process is there for as long as anything in this one still knows the handle


@contextmanager
def progress_bar(
    total: int, unit: str = "passages", time_left: Remaining | None = None
) -> Iterator[Callable[[tuple[int, int]], None]]:
    """Shows how far a job is: call it with (units done, how much of `total`), such as passages and bytes of a corpus.

    On a terminal it is a bar, elsewhere a line every few seconds, with units a second and the time left: what
    `time_left` says, else an extrapolation of what is done.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(total, unit, time_left)
        return
    columns = [BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.description}")]
    with Progress(*columns, *([] if time_left else [TimeRemainingColumn()]), console=console) as bar:
        task, rate = bar.add_task("starting", total=max(1, total)), _Rate()

        def show(done: tuple[int, int]) -> None:
            speed = rate.units(*done)
            text = f"{done[0]} {unit}" + (f", {speed:.0f} {unit}/s" if speed else "")
            text += _left(*time_left()) if time_left else ""
            bar.update(task, completed=done[1], description=text)

        yield show


class _Rate:
    """Speed since the first block was done, which leaves out the start of workers and the loading of a model."""

    def __init__(self) -> None:
        self._first: tuple[float, int, int] | None = None

    def units(self, count: int, read: int) -> float:
        """Units a second; 0 during the first second."""
        now = time.monotonic()
        self._first = self._first or (now, count, read)
        elapsed = now - self._first[0]
        return (count - self._first[1]) / elapsed if elapsed >= _LEAST_SECONDS else 0.0

    def seconds_left(self, read: int, total: int) -> float | None:
        """Until all bytes are read; None if it is not known yet."""
        if self._first is None or read <= self._first[2] or read >= total:
            return None
        return (time.monotonic() - self._first[0]) * (total - read) / (read - self._first[2])


class _Lines:
    """One line of the log every few seconds, and one at the end."""

    def __init__(self, total: int, unit: str, time_left: Remaining | None = None) -> None:
        self._total, self._shown, self._rate, self._unit = max(1, total), 0.0, _Rate(), unit
        self._time_left = time_left
        self._last: tuple[int, int] | None = None

    def __call__(self, done: tuple[int, int]) -> None:
        speed, now = self._rate.units(*done), time.monotonic()
        if done == self._last or (now - self._shown < _LINE_SECONDS and done[1] < self._total):
            return
        self._shown, self._last = now, done
        left = self._time_left() if self._time_left else (self._rate.seconds_left(done[1], self._total) or 0.0, 0)
        rest = (f", {speed:.0f} {self._unit}/s" if speed else "") + _left(*left)
        logger.info("%d %s (%.0f %%)%s", done[0], self._unit, 100 * done[1] / self._total, rest)


def _left(seconds: float, others: int) -> str:
    if others:
        untimed = f"{counted(others, 'method')} not timed yet"
        return f", at least {readable_duration(seconds)} left ({untimed})" if seconds else f", {untimed}"
    return f", about {readable_duration(seconds)} left" if seconds else ""


def _show_all(mailbox: Any, waiting: list[Any], show: Callable[[Any], None]) -> None:
    """Show what has arrived. An answer that is late, on a busy machine, is waited for again and not requested twice."""
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
