"""The steps of a rebuild: each has a key of all that decides its result, and is skipped when that was done before.

What a step makes lies at a place named by its key, so nothing that is current is ever written to, and a step that was
killed finds what it had done: the jobs behind the steps resume by themselves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from regrad.errors import RebuildError
from regrad.locking import exclusive
from regrad.rebuild.records import (
    CostConfig,
    MadeOutput,
    Records,
    RunRecord,
    cost_of,
    host,
    now,
    plain,
    revision,
    software,
)
from regrad.storage import Storage

logger = logging.getLogger(__name__)

_LOCK = "rebuild"

Done = Mapping[str, RunRecord]
"""The records of the steps before, by name."""


@dataclass(frozen=True)
class StepOutcome:
    """What a run of a step came to: a line for people, facts for the steps after it, and what it has made."""

    line: str
    facts: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[MadeOutput, ...] = ()
    count: int | None = None
    busy_seconds: float | None = None


@dataclass(frozen=True)
class Step:
    """One step. `work` may be killed at any moment and called again: it then goes on.

    `found` says what the place has if the work was finished before, but not recorded; None if it has to be done.
    `count` is the number of `unit`s that are to be done, None where that is not known before. What the step writes
    grows with that number, if it `grows`. `size` is its bytes, where they are known exactly.
    """

    name: str
    key: str
    settings: Mapping[str, Any]
    work: Callable[[Done], StepOutcome]
    found: Callable[[], StepOutcome | None] = lambda: None
    like: Any = None
    workers: int = 1
    unit: str = ""
    count: Callable[[], int | None] = lambda: None
    size: Callable[[int], int | None] = lambda _: None
    grows: bool = True


@contextmanager
def alone(output: Storage) -> Iterator[None]:
    """Holds the lock of `output` inside the block; raises `RebuildError` if another rebuild has it."""

    def busy(holder: str) -> RebuildError:
        return RebuildError(
            f"another `regrad rebuild` is at work in {output.uri}; wait for it, or choose another output (it is "
            f"{holder})",
            code="busy",
            uri=output.uri,
        )

    with exclusive(Storage(f"{output.uri}/{_LOCK}"), busy):
        yield


def check_writable(output: Storage) -> None:
    """Raise `StorageError` unless files can be written to and removed from `output`."""
    name = f".{_LOCK}-{host()}"
    output.write(name, b"")
    output.remove_file(name)


def remove_left_over(output: Storage, place: str) -> None:
    """Remove what runs of a step that were killed had begun beside `place`: a directory is filled there, then renamed.

    No other rebuild fills it while this one is `alone`.
    """
    folder, _, name = place.rpartition("/")
    beside = Storage(f"{output.uri}/{folder}")
    for found in beside.list():
        if found.startswith(f".{name}."):
            Storage(f"{beside.uri}/{found}").remove()


def run_steps(
    steps: Sequence[Step],
    output: Storage,
    cost: CostConfig,
    say: Callable[[str], None],
    begin: Callable[[], None] = lambda: None,
) -> dict[str, RunRecord]:
    """Do what is not done, in order, after calling `begin`; returns the record of every step by its name."""
    records, found = Records(output), dict[str, RunRecord]()
    for step in steps:
        before = records.read(step.name, step.key)
        if before is not None and before.ended is not None:
            say(f"{step.name}: done before. {before.line}")
            found[step.name] = before
            continue
        begin()
        found[step.name] = _run(step, before, found, records, cost)
        say(f"{step.name}: {found[step.name].line}")
    return found


def _run(step: Step, before: RunRecord | None, done: Done, records: Records, cost: CostConfig) -> RunRecord:
    # Killed between the end of the work and its record: what is at the place is this step's, as the place has its key.
    there = step.found() if before else None
    record = begun(step, before)
    records.write(record)
    logger.info("%s", step.name)
    started = time.monotonic()
    outcome = there or step.work(done)
    seconds = None if there else round(time.monotonic() - started, 3)
    finished = ended(record, outcome, seconds, cost)
    records.write(finished)
    return finished


def begun(step: Step, before: RunRecord | None = None) -> RunRecord:
    """The record of a run that begins now; `before` is that of a run which did not end."""
    return RunRecord(
        step=step.name,
        key=step.key,
        settings=plain(step.settings),
        like=plain(step.like),
        software=software(),
        revision=revision(),
        host=host(),
        began=now(),
        attempts=before.attempts + 1 if before else 1,
        workers=step.workers,
        unit=step.unit,
    )


def ended(record: RunRecord, outcome: StepOutcome, seconds: float | None, cost: CostConfig = CostConfig()) -> RunRecord:
    """The record of that run, which has come to `outcome`; `seconds` None: there was nothing left to do."""
    return record.model_copy(
        update={
            "ended": now(),
            "seconds": seconds,
            "line": outcome.line,
            "facts": plain(outcome.facts),
            "outputs": outcome.outputs,
            "count": outcome.count,
            "busy_seconds": outcome.busy_seconds,
            "cost": None if seconds is None else cost_of(seconds, cost),
        }
    )
