"""The steps of the report that are not done, stage by stage on one cluster, then the report from what is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from ray_jobs.cluster import cause_of, cluster
from regrad.cli.lab_report.jobs import run_job
from regrad.config import LabReportConfig
from regrad.lab.report.journal import Journal
from regrad.lab.report.plan import Stage, Step, make_stages
from regrad.lab.report.writing import write_report

Say = Callable[[str], None]


def run_report(config: LabReportConfig, say: Say) -> str:
    """Run what is missing and write the report; returns one line saying where."""
    stages, journal = make_stages(config), Journal(config.output)
    left = {step.name for stage in stages for step in stage.steps if not journal.done(step)}
    total = sum(len(stage.steps) for stage in stages)
    say(f"{total} steps, {total - len(left)} of them done before")
    if left:
        work = _Work(config, journal, say, total, total - len(left))
        with cluster():
            for stage in stages:
                work.run(stage, [step for step in stage.steps if step.name in left])
    return write_report(config, journal.clock())


class _Work:
    """Runs steps, so many at once as there are workers, and notes each that is complete."""

    def __init__(self, config: LabReportConfig, journal: Journal, say: Say, total: int, done: int) -> None:
        self._workers, self._journal, self._say = config.cluster.workers, journal, say
        self._total, self._done = total, done
        self._before, self._started = journal.clock(), time.monotonic()

    def run(self, stage: Stage, steps: list[Step]) -> None:
        """All steps of a stage. Raises the first error; what runs beside it goes on to its end and is noted."""
        if steps:
            self._say(f"== {stage.title}: {len(steps)} steps")
        running: dict[Any, tuple[Step, float]] = {}
        failure: BaseException | None = None
        while steps or running:
            while steps and failure is None and self._fits(steps[0], [step for step, _ in running.values()]):
                step = steps.pop(0)
                running[_started(step)] = step, time.monotonic()
            if not running:
                break
            (ready, *_), _ = ray.wait(list(running))
            step, began = running.pop(ready)
            try:
                self._finish(step, ray.get(ready), time.monotonic() - began)
            except ray.exceptions.RayError as error:
                failure = failure or cause_of(error)
        if failure is not None:
            raise failure

    def _fits(self, step: Step, running: list[Step]) -> bool:
        alone = step.alone or any(other.alone for other in running)
        return not running if alone else len(running) < self._workers

    def _finish(self, step: Step, line: str, seconds: float) -> None:
        clock = self._before + time.monotonic() - self._started
        self._journal.finish(step, line, seconds, clock)
        self._done += 1
        self._say(f"[{self._done}/{self._total}, {clock / 60:.1f} min] {step.name}, {seconds:.0f} s: {line}")


def _started(step: Step) -> Any:
    task = ray.remote(num_cpus=0, max_retries=0)(run_job)
    return task.remote(step.job, step.settings)
