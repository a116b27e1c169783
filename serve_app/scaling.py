"""How many replicas the questions need. Serve by itself counts calls, and a call brings a micro-batch of them.

A replica says how many questions and how many calls it has in hand, and the controller multiplies all calls, also those
that wait for a replica, by the questions of a call: only then does load that fills a replica look like load.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray.serve.config import AutoscalingContext

QUESTIONS = "questions"
CALLS = "calls"


class InHand:
    """How many questions and calls a replica works on, on average over the time since it was asked last.

    Any thread may count: Serve runs some methods in threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._now = {QUESTIONS: 0, CALLS: 0}
        self._sums = {QUESTIONS: 0.0, CALLS: 0.0}
        self._asked = self._changed = clock()

    @contextmanager
    def call(self, questions: int) -> Iterator[None]:
        """A call with so many questions, for as long as the block takes."""
        self._add(questions, 1)
        try:
            yield
        finally:
            self._add(-questions, -1)

    def averages(self) -> dict[str, float]:
        """What Serve's controller is told: `QUESTIONS` and `CALLS`."""
        with self._lock:
            self._pass_time()
            elapsed = self._changed - self._asked
            found = {
                name: (self._sums[name] / elapsed if elapsed > 0 else float(self._now[name])) for name in self._now
            }
            self._sums = dict.fromkeys(self._sums, 0.0)
            self._asked = self._changed
            return found

    def _add(self, questions: int, calls: int) -> None:
        with self._lock:
            self._pass_time()
            self._now[QUESTIONS] += questions
            self._now[CALLS] += calls

    def _pass_time(self) -> None:
        now = self._clock()
        for name, count in self._now.items():
            self._sums[name] += count * (now - self._changed)
        self._changed = now


def replicas_for_questions(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """A policy for Serve's autoscaling: so many replicas that each has `target_ongoing_requests` questions in hand.

    Serve applies the delays and the bounds. While no replica has said anything a call counts as one question.
    """
    told = context.aggregated_metrics
    questions, calls = (sum(told.get(name, {}).values()) for name in (QUESTIONS, CALLS))
    questions_a_call = max(1.0, questions / calls) if calls > 0 else 1.0
    return context.total_num_requests * questions_a_call / context.config.get_target_ongoing_requests(), {}
