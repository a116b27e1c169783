"""Running the steps of a study that are not done, on one cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from ray_jobs.cluster import cause_of, cluster
from regrad.errors import EvaluationError
from regrad.locking import exclusive
from regrad.rebuild.records import Records, RunRecord
from regrad.rebuild.steps import StepOutcome, begun, ended
from regrad.settings import settings_changed
from regrad.storage import Storage
from studies.step import Step

_SHOWN = 8  # of the keys


def run_steps(steps: Sequence[Step], output: str, workers: int, say: Callable[[str], None]) -> float:
    """Run what is missing, at most `workers` steps at once; returns the seconds that the study has been at work in all.

    Interrupted at any point, the next call goes on with what is not complete. Raises `ConfigError` for a step
    whose settings are wrong, before any is begun, `EvaluationError` if another run is at work there, and the error of
    a step that failed, when the others have ended.
    """
    progress = Progress(output)
    with progress.alone():
        left = [step for step in steps if not progress.done(step)]
        say(f"{len(steps)} steps, {len(steps) - len(left)} of them done before")
        for step in left:
            step.work.content()  # wrong settings are found now, not after hours of other steps
        if left:
            with cluster():
                _run(left, workers, progress, say, len(steps))
        return progress.clock()


def _run(left: Sequence[Step], workers: int, progress: Progress, say: Callable[[str], None], total: int) -> None:
    """All of them. Raises the first error; what runs beside it goes on to its end and is noted."""
    waiting = list(left)
    running = dict[Any, tuple[Step, RunRecord, float]]()
    failure = None
    before = progress.clock()
    started = time.monotonic()
    while waiting or running:
        while failure is None and (step := next_step(waiting, [step for step, _, _ in running.values()], workers)):
            waiting.remove(step)
            running[_begin(step)] = step, begun(step.recorded), time.monotonic()
        if not running:
            break
        (ready, *_), _ = ray.wait(list(running))
        step, record, began = running.pop(ready)
        try:
            line = ray.get(ready)
        except ray.exceptions.RayError as error:
            failure = failure or cause_of(error)
            others = ", ".join(step.name for step, _, _ in running.values())
            say(f"{step.name} failed{f'; still at work: {others}' if others else ''}: {cause_of(error)}")
            say(f"it was: {step.work}")
            continue
        now = time.monotonic()
        clock = before + now - started
        done = total - len(waiting) - len(running)
        progress.finish(record, line, now - began, clock)
        say(f"[{done}/{total}, {clock / 60:.1f} min] {step.name}, {now - began:.0f} s: {line}")
    if failure is not None:
        raise failure


def next_step(waiting: Sequence[Step], running: Sequence[Step], workers: int) -> Step | None:
    """The first step that can be begun now, beside those that run."""
    if len(running) >= workers or any(step.alone for step in running):
        return None
    missing = {step.name for step in (*waiting, *running)}
    for step in waiting:
        crowded = (step.alone and running) or (step.streams and any(other.streams for other in running))
        if not step.needs & missing and not crowded:
            return step
    return None


def _begin(step: Step) -> Any:
    """In a process of its own; the workers of a step that is a job have CPUs of their own."""
    return ray.remote(num_cpus=0, max_retries=0)(Step.run).remote(step)


class Progress:
    """Which steps of a study are done: their run records in the directory `steps`, as a rebuild keeps those of its own.

    A step's place does not name its settings, so it has one record there; it is written when the step is complete.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._records = Records(Storage(output), "steps", by_key=False)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the output's lock inside the block; raises `EvaluationError` if another run has it."""

        def busy(holder: str) -> EvaluationError:
            return EvaluationError(
                f"another run of a study is at work in {self._output}; wait for it, or choose another output (it is "
                f"{holder})",
                code="study_busy",
                uri=self._output,
            )

        with exclusive(Storage(f"{self._output}/steps"), busy):
            yield

    def done(self, step: Step) -> bool:
        """Whether the step is complete; raises `EvaluationError` if it is, but with other settings."""
        now = step.recorded
        record = self._records.read(now.name, now.key)
        if record is None:
            return False
        changed = list(settings_changed(record.settings, now.settings, step.work.content(exclude_defaults=True)))
        if not changed:
            return True
        if not step.is_evaluation:
            keys = [key for key, _, _ in changed]
            raise EvaluationError(
                f"step '{step.name}' at {self._output}/steps was done with other settings "
                f"({', '.join(keys[:_SHOWN])}); give the study another output, or remove this one",
                code="other_settings",
                step=step.name,
                keys=keys,
            )
        return False  # its cells know themselves which of them are still good

    def finish(self, record: RunRecord, line: str, seconds: float, clock: float) -> None:
        """Note that a run is complete, what it took, and for how long the study has been at work in all."""
        self._records.write(ended(record, StepOutcome(line, {"clock": round(clock, 1)}), round(seconds, 1)))

    def clock(self) -> float:
        """Seconds that earlier calls were at work, up to the last step that they finished."""
        return max((float(record.facts["clock"]) for record in self._records.all()), default=0.0)
