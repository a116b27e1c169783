"""What a job leaves beside its result: `OUTPUT.run.json`, a run record like those of a rebuild's steps.

It is begun before the work: a place that cannot be written to is found then, and not at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from ray_jobs.node_hours import NodeMeter, metered, money_of
from regrad.digests import json_digest
from regrad.errors import RegradError
from regrad.rebuild.inputs import content_digest, size_of
from regrad.rebuild.records import MadeOutput, RunRecord, host, now, revision, software
from regrad.settings import Settings, WorkersConfig
from regrad.storage import Storage

S = TypeVar("S", bound=Settings)
R = TypeVar("R")


def recorded(config: S, run: Callable[[S], R], job: str, line: Callable[[R], str] = str) -> R:
    """What the job returns; its record has settings, software, times, cost, what was made, and the result's line.

    Raises `StorageError` if the record cannot be written, and what the job raises, whose code the record then has.
    """
    place = _place(config)
    folder, _, name = f"{place}.run.json".rpartition("/")
    storage = Storage(folder or "/")
    record = _begun(config, job, storage, name)

    def write(found: RunRecord) -> None:
        storage.write(name, (found.model_dump_json(indent=1) + "\n").encode())

    write(record)
    started = time.monotonic()
    with metered() as meter:
        try:
            result = run(config)
        except RegradError as error:
            write(_ended(record, started, f"error: {error}", facts={"error": error.code}, **_paid(config, meter)))
            raise
        write(_ended(record, started, line(result), outputs=_made(place), **_paid(config, meter)))
    return result


def _paid(config: Settings, meter: NodeMeter) -> dict[str, Any]:
    """Hours of machines until now, and what they cost. Those of an attempt that was killed are in no record."""
    hours = meter.hours()
    return {"node_hours": hours, "cost": money_of(hours, getattr(config, "cluster", None) or WorkersConfig())}


def _place(config: Settings) -> str:
    """Where a job's result lies: the settings of every job have `output`, or a bank."""
    found: Any = config
    return str(found.output if hasattr(found, "output") else found.bank.uri).rstrip("/")


def _begun(config: Settings, job: str, storage: Storage, name: str) -> RunRecord:
    settings = config.model_dump(mode="json")
    key = json_digest(settings, 12)
    before = None
    if storage.exists(name):
        with suppress(ValueError):  # of another version of regrad, or of somebody else
            before = RunRecord.model_validate_json(storage.read(name))
    goes_on = before is not None and before.key == key and (before.ended is None or "error" in before.facts)
    return RunRecord(
        step=job,
        key=key,
        settings=settings,
        software=software(),
        revision=revision(),
        host=host(),
        began=now(),
        attempts=before.attempts + 1 if before is not None and goes_on else 1,
        workers=getattr(getattr(config, "cluster", None), "workers", 1),
    )


def _ended(record: RunRecord, started: float, line: str, **found: Any) -> RunRecord:
    seconds = round(time.monotonic() - started, 3)
    return record.model_copy(update={"ended": now(), "seconds": seconds, "line": line, **found})


def _made(place: str) -> tuple[MadeOutput, ...]:
    try:
        return (MadeOutput(place=place, bytes=size_of(place), digest=content_digest(place)),)
    except RegradError:
        return ()  # a job that has made what it was to make does not fail by its record
