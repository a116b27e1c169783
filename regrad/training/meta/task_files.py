"""Where tasks come from: jsonl (plain or gzip) or Parquet, a file or a directory of files, on any storage URI."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError

from regrad.data.tasks import MetaTask
from regrad.errors import CorpusError, StorageError
from regrad.storage import Storage
from regrad.training.meta.config import ShapeConfig
from regrad.training.meta.lengths import Lengths

_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class ScannedTask:
    """One record: where it stands, and the task or what is wrong with it."""

    where: str
    task: MetaTask | None
    problem: str = ""


def task_files(uri: str) -> list[str]:
    """The file itself, or a directory's task files in the order of their names; raises `CorpusError` if none."""
    storage = Storage(uri)
    try:
        kind = storage.fs.info(storage.root)["type"]
    except FileNotFoundError as error:
        raise CorpusError(f"{uri} does not exist") from error
    except OSError as error:
        raise StorageError(f"cannot look up {uri}: {error}") from error
    if kind != "directory":
        return [storage.uri]
    names = [name for name in storage.list() if name.endswith(_ENDINGS)]
    if not names:
        raise CorpusError(f"{uri} holds no task files ({', '.join(_ENDINGS)})")
    return [f"{storage.uri}/{name}" for name in names]


def scan_file(uri: str, lengths: Lengths | None = None, shape: ShapeConfig = ShapeConfig()) -> Iterator[ScannedTask]:
    """All records of one file in order, streamed; a bad one comes with its problem, naming file and line.

    With `lengths`, tasks that are longer than `shape` allows are bad, too. A task without an id gets its place.
    """
    for place, record in _records(uri):
        if isinstance(record, CorpusError):
            yield ScannedTask(place, None, str(record))
            continue
        try:
            task = MetaTask.from_record(record, place)
            if lengths is not None:
                lengths.check(task, place, shape)
        except CorpusError as error:
            yield ScannedTask(place, None, str(error))
            continue
        yield ScannedTask(place, task if task.id else MetaTask(task.passages, task.questions, place))


def check_dev_tasks(uri: str, lengths: Lengths, shape: ShapeConfig, max_new_tokens: int) -> str:
    """Raise `CorpusError` for the first dev task that could not be scored; returns a hash of all of them."""
    digest = hashlib.sha256()
    for task in read_tasks(uri):
        lengths.check_dev(task, f"{uri} task {task.id}", shape, max_new_tokens)
        digest.update(json.dumps(task.to_record()).encode())
    return digest.hexdigest()[:16]


def read_tasks(uri: str) -> list[MetaTask]:
    """All tasks of a file or directory; raises `CorpusError` for the first bad one, or if there is none."""
    tasks = []
    for file in task_files(uri):
        for scanned in scan_file(file):
            if scanned.task is None:
                raise CorpusError(scanned.problem)
            tasks.append(scanned.task)
    if not tasks:
        raise CorpusError(f"{uri} holds no tasks")
    return tasks


def _records(uri: str) -> Iterator[tuple[str, Any]]:
    """(place, decoded record or `CorpusError`)."""
    try:
        with fsspec.open(uri, "rb", compression=None if uri.endswith(".parquet") else "infer") as file:
            yield from _parquet(uri, file) if uri.endswith(".parquet") else _jsonl(uri, file)
    except FileNotFoundError as error:
        raise CorpusError(f"{uri} does not exist") from error
    except (OSError, ValueError, EOFError, BotoCoreError) as error:
        raise CorpusError(f"{uri} cannot be read: {error}") from error


def _jsonl(uri: str, file: Any) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        place = f"{uri} line {number}"
        if not line.strip():
            continue
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError):
            yield place, CorpusError(f"{place} is not JSON")


def _parquet(uri: str, file: Any) -> Iterator[tuple[str, Any]]:
    row = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=64):
            for record in batch.to_pylist():
                row += 1
                yield f"{uri} row {row}", record
    except (ValueError, OSError) as error:
        raise CorpusError(f"{uri} is not a Parquet file of tasks: {error}") from error


def duplicates(ids: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Place -> problem, for every (place, id) whose id came before."""
    first: dict[str, str] = {}
    problems = {}
    for place, identifier in ids:
        if first.setdefault(identifier, place) != place:
            problems[place] = f"{place}: task id '{identifier}' is also at {first[identifier]}"
    return problems
