"""Tasks of meta-training: a few passages, and questions that each name the passages they are answered from.

Files are jsonl (plain or compressed) or Parquet, one or a directory of them, on any storage URI. One task a record:
`{"id": ..., "passages": [{id, title, text}], "questions": [{question, answer, context: [0, 2]}]}`;
`context` are positions in `passages`, best first (all of them if absent); `id` may be left out. A question that is not
open has a `kind` (yes-no or choice) and `choices`, and may have several `answers`, as in a file of questions. With
`"in_prompt": false` the task's prompts have no passages, even where those of others have (`shape.in_prompt`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import fsspec
import pyarrow.parquet as pq

from regrad.data.closed_questions import check_keys, closed
from regrad.data.field_names import ANSWERS, ID, answers_name, listed_names, named
from regrad.data.files import JSONL, PARQUET, endings_of, file_format, files_with, reading
from regrad.data.jsonl import RawLine, as_object, raw_lines
from regrad.data.passages import Passage
from regrad.data.questions import Fields, Question, QuestionKind, labelled
from regrad.errors import CorpusError, StorageError
from regrad.storage import Storage

_ROWS = 64


@dataclass(frozen=True)
class TaskQuestion:
    """A question, its answer, and the positions of its retrieved passages in the task.

    `answer` is what is trained on: the word of a yes-no question, the letter of a choice. `aliases` are the other
    answers that count as right. Kind and choices are those of `Question`, which `asked` gives: what writes prompts and
    scores takes that one. It is another class as a question of a task has no passages but positions, and one answer
    before the others.
    """

    question: str
    answer: str
    context: tuple[int, ...]
    kind: QuestionKind = "open"
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def asked(self) -> Question:
        """The question as evaluation has it: what writes the prompt and scores the answer."""
        return Question("", self.question, (self.answer, *self.aliases), self.kind, self.choices)

    def to_record(self) -> dict[str, Any]:
        """The inverse of `_question`. The answer of a choice is written as its text, which a letter might also be."""
        options = dict(labelled(self.choices)) if self.kind == "choice" else {}
        answers = [options.get(answer, answer) for answer in (self.answer, *self.aliases)]
        said: dict[str, Any] = {"answers": answers} if self.aliases else {"answer": answers[0]}
        closed = {"kind": self.kind, "choices": list(self.choices)} if self.kind != "open" else {}
        return {"question": self.question, **said, "context": list(self.context), **closed}


@dataclass(frozen=True)
class Task:
    """Passages and the questions about them; `in_prompt`: whether its prompts may have the passages."""

    passages: tuple[Passage, ...]
    questions: tuple[TaskQuestion, ...]
    id: str = ""
    in_prompt: bool = field(default=True, repr=False)  # a repr is hashed where no prompt depends on it (records_digest)

    @staticmethod
    def from_record(record: Any, where: str = "record") -> Task:
        """Check one decoded record; raises `CorpusError` naming `where`."""
        fields = as_object(record, where)
        for name in ("passages", "questions"):
            if not isinstance(fields.get(name), list) or not fields[name]:
                text = f"{where}: a task needs non-empty '{name}', and this record has {listed_names(fields)}"
                raise CorpusError(text, code="no_task", where=where)
        identifier = Fields(where, fields, raises=CorpusError).maybe(named(fields, ID))
        passages = tuple(Passage.from_record(item, f"{where} passage {i}") for i, item in enumerate(record["passages"]))
        questions = tuple(
            _question(item, len(passages), f"{where} question {i}") for i, item in enumerate(record["questions"])
        )
        in_prompt = fields.get("in_prompt")
        if in_prompt is None:  # as Parquet has it where other records say something
            in_prompt = True
        if not isinstance(in_prompt, bool):
            raise CorpusError(f"{where}: 'in_prompt' has to be true or false", code="no_task", where=where)
        return Task(passages, questions, identifier, in_prompt)

    def to_record(self) -> dict[str, Any]:
        """The inverse of `from_record`."""
        questions = [question.to_record() for question in self.questions]
        record = {"id": self.id, "passages": [asdict(passage) for passage in self.passages], "questions": questions}
        return record if self.in_prompt else record | {"in_prompt": False}


_KEYS = ("question", *ANSWERS, "context", "kind", "choices")


def _question(item: Any, passages: int, where: str) -> TaskQuestion:
    record = Fields(where, as_object(item, where), raises=CorpusError)
    check_keys(record, _KEYS)
    kind, choices, (answer, *aliases) = closed(record, answers_name(record.fields))
    context = record.fields["context"] if record.has("context") else None
    positions = range(passages) if context is None else context if isinstance(context, list) else ()
    if not positions or not all(type(i) is int and 0 <= i < passages for i in positions):
        raise record.error("context", f"positions from 0 to {passages - 1}")
    return TaskQuestion(
        record.text("question"), answer, tuple(dict.fromkeys(positions)), kind, choices, tuple(dict.fromkeys(aliases))
    )


@dataclass(frozen=True)
class ScannedTask:
    """One record: where it is, and the task or what is wrong with it."""

    where: str
    task: Task | None
    problem: str = ""
    error: CorpusError | None = None


def task_files(uri: str) -> list[str]:
    """The file itself, or those below a directory, sorted by path; raises `CorpusError` if there is none."""
    storage = Storage(uri)
    try:
        kind = storage.fs.info(storage.root)["type"]
    except FileNotFoundError as error:
        raise CorpusError(
            f"{uri} does not exist; make tasks with `regrad tasks`, `regrad synth` or `regrad lab world`",
            code="not_found",
            uri=uri,
        ) from error
    except OSError as error:
        raise StorageError(f"cannot look up {uri}: {error}", code="refused", uri=uri) from error
    if kind != "directory":
        return [storage.uri]
    return [file.uri for file in files_with(storage.uri, endings_of(JSONL, PARQUET), "of tasks")]


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
