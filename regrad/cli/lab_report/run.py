"""The steps of the report that are not done, on one cluster, then the report from what is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from ray_jobs.cluster import cause_of, cluster
from regrad.cli.lab_report.jobs import run_job
from regrad.lab.report.config import LabReportConfig
from regrad.lab.report.journal import Journal
from regrad.lab.report.plan import Step, make_steps
from regrad.lab.report.writing import write_report

Say = Callable[[str], None]


def run_report(config: LabReportConfig, say: Say) -> str:
    """Run what is missing and write the report; returns one line saying where."""
    steps, journal = make_steps(config), Journal(config.output)
    left = [step for step in steps if not journal.done(step)]
    say(f"{len(steps)} steps, {len(steps) - len(left)} of them done before")
    if left:
        with cluster():
            _Work(config, journal, say, len(steps)).run(left)
    return write_report(config, journal.clock())


class _Work:
    """Runs steps, so many at once as there are workers, and notes each that is complete."""

    def __init__(self, config: LabReportConfig, journal: Journal, say: Say, total: int) -> None:
        self._workers, self._journal, self._say, self._total = config.cluster.workers, journal, say, total
        self._before, self._started = journal.clock(), time.monotonic()

    def run(self, left: Sequence[Step]) -> None:
        """All of them. Raises the first error; what runs beside it goes on to its end and is noted."""
        waiting, running, failure = list(left), dict[Any, tuple[Step, float]](), None
        while waiting or running:
            while failure is None and (step := self._next(waiting, [step for step, _ in running.values()])):
                waiting.remove(step)
                running[_started(step)] = step, time.monotonic()
            if not running:
                break
            (ready, *_), _ = ray.wait(list(running))
            step, began = running.pop(ready)
            try:
                self._finish(step, ray.get(ready), time.monotonic() - began, len(waiting) + len(running))
            except ray.exceptions.RayError as error:
                failure = failure or cause_of(error)
        if failure is not None:
            raise failure

    def _next(self, waiting: Sequence[Step], running: Sequence[Step]) -> Step | None:
        """The first step that can be begun now."""
        if len(running) >= self._workers or any(step.alone for step in running):
            return None
        missing, streams = {step.name for step in (*waiting, *running)}, any(step.streams for step in running)
        ready = (step for step in waiting if not step.after & missing)
        return next((s for s in ready if not (s.alone and running) and not (s.streams and streams)), None)

    def _finish(self, step: Step, line: str, seconds: float, left: int) -> None:
        clock = self._before + time.monotonic() - self._started
        self._journal.finish(step, line, seconds, clock)
        self._say(f"[{self._total - left}/{self._total}, {clock / 60:.1f} min] {step.name}, {seconds:.0f} s: {line}")


def _started(step: Step) -> Any:
    task = ray.remote(num_cpus=0, max_retries=0)(run_job)
    return task.remote(step.job, step.settings)
