"""Tasks of meta-training: a few passages, and questions that each name the passages they are answered from.

Files are jsonl (plain or compressed) or Parquet, one or a directory of them, on any storage URI. One task a record:
`{"id": ..., "passages": [{id, title, text}], "questions": [{question, answer, context: [0, 2]}]}`;
`context` are positions in `passages`, best first (all of them if absent); `id` may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import fsspec
import pyarrow.parquet as pq

from regrad.data.files import JSONL, PARQUET, file_format, reading
from regrad.data.jsonl import RawLine, as_found, raw_lines
from regrad.data.passages import Passage
from regrad.errors import CorpusError, StorageError
from regrad.storage import Storage

_ROWS = 64


@dataclass(frozen=True)
class TaskQuestion:
    """A question, its answer, and the positions of its retrieved passages in the task."""

    question: str
    answer: str
    context: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """Passages and the questions about them."""

    passages: tuple[Passage, ...]
    questions: tuple[TaskQuestion, ...]
    id: str = ""

    @staticmethod
    def from_record(record: Any, where: str = "record") -> Task:
        """Check one decoded record; raises `CorpusError` naming `where`."""
        parts = [record.get(k) if isinstance(record, dict) else None for k in ("passages", "questions")]
        for name, part in zip(("passages", "questions"), parts, strict=True):
            if not isinstance(part, list) or not part:
                raise CorpusError(f"{where}: a task needs non-empty '{name}'", code="no_task", where=where)
        identifier = record.get("id", "")
        if not isinstance(identifier, str):
            text = f"{where}: 'id' must be a string, found {as_found(identifier)}"
            raise CorpusError(text, code="wrong_field", where=where, field="id")
        passages = tuple(Passage.from_record(item, f"{where} passage {i}") for i, item in enumerate(record["passages"]))
        questions = tuple(
            _question(item, len(passages), f"{where} question {i}") for i, item in enumerate(record["questions"])
        )
        return Task(passages, questions, identifier)

    def to_record(self) -> dict[str, Any]:
        """The inverse of `from_record`."""
        questions = [{**asdict(question), "context": list(question.context)} for question in self.questions]
        return {"id": self.id, "passages": [asdict(passage) for passage in self.passages], "questions": questions}


def _question(item: Any, passages: int, where: str) -> TaskQuestion:
    if not isinstance(item, dict) or not all(isinstance(item.get(k), str) and item[k] for k in ("question", "answer")):
        text = f"{where}: 'question' and 'answer' must be non-empty strings"
        raise CorpusError(text, code="wrong_field", where=where, field="answer")
    context = item.get("context")
    positions = range(passages) if context is None else context if isinstance(context, list) else ()
    if not positions or not all(type(i) is int and 0 <= i < passages for i in positions):
        text = f"{where}: 'context' must be positions from 0 to {passages - 1}, found {as_found(context)}"
        raise CorpusError(text, code="wrong_field", where=where, field="context")
    return TaskQuestion(item["question"], item["answer"], tuple(dict.fromkeys(positions)))


@dataclass(frozen=True)
class ScannedTask:
    """One record: where it is, and the task or what is wrong with it."""

    where: str
    task: Task | None
    problem: str = ""
    error: CorpusError | None = None


def task_files(uri: str) -> list[str]:
    """The file itself, or a directory's task files in the order of their names; raises `CorpusError` if none."""
    storage = Storage(uri)
    try:
        kind = storage.fs.info(storage.root)["type"]
    except FileNotFoundError as error:
        raise CorpusError(f"{uri} does not exist", code="not_found", uri=uri) from error
    except OSError as error:
        raise StorageError(f"cannot look up {uri}: {error}", code="refused", uri=uri) from error
    if kind != "directory":
        return [storage.uri]
    names = [name for name in storage.list() if file_format(name) in (JSONL, PARQUET)]
    if not names:
        text = f"{uri} holds no task files (.jsonl, plain or compressed, or .parquet)"
        raise CorpusError(text, code="no_file", uri=uri)
    return [f"{storage.uri}/{name}" for name in names]


def scan_tasks(uri: str, check: Callable[[Task, str], None] | None = None) -> Iterator[ScannedTask]:
    """All records of one file in order, streamed; a bad one comes with its problem, naming file and line.

    A task for which `check` (called with its place) raises `CorpusError` is bad, too. The place is also the id of
    a task that has none.
    """
    lines = ((line.where, line) for line in raw_lines(uri))
    for where, record in _rows(uri) if file_format(uri) == PARQUET else lines:
        try:
            task = Task.from_record(record.decode() if isinstance(record, RawLine) else record, where)
            if check is not None:
                check(task, where)
        except CorpusError as error:
            yield ScannedTask(where, None, str(error), error)
        else:
            yield ScannedTask(where, task if task.id else replace(task, id=where))


def read_tasks(uri: str) -> list[Task]:
    """All tasks of a file or directory; raises `CorpusError` for the first bad one, or if there is none."""
    tasks = []
    for file in task_files(uri):
        for scanned in scan_tasks(file):
            if scanned.error:
                raise scanned.error
            if scanned.task:
                tasks.append(scanned.task)
    if not tasks:
        raise CorpusError(f"{uri} holds no tasks", code="empty", uri=uri)
    return tasks


def duplicates(ids: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Place -> problem, for every (place, id) whose id occurred before."""
    first: dict[str, str] = {}
    problems = {}
    for place, identifier in ids:
        if first.setdefault(identifier, place) != place:
            problems[place] = f"{place}: task id '{identifier}' is also at {first[identifier]}"
    return problems


def _rows(uri: str) -> Iterator[tuple[str, Any]]:
    """(file and row, record) of every row of a Parquet file."""
    row = 0
    with reading(uri), fsspec.open(uri, "rb") as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_ROWS):
            for record in batch.to_pylist():
                row += 1
                yield f"{uri} row {row}", record
