"""Records: one question of one cell of the table, in Parquet, so that reports need no model."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from regrad.data.predictions import Mismatch, mismatch, mismatches, refuse
from regrad.data.questions import CLOSED_READERS, QUESTION_KINDS, Question, QuestionKind
from regrad.errors import EvaluationError
from regrad.evaluation.metrics import AnswerScore
from regrad.storage import Storage

MOST_RECORDS = 1_000_000
"""In one file."""
# A file is read into memory at once, and decoding can make it much larger: both are limited before it happens.
_MOST_BYTES = 1024**3
_MOST_BYTES_DECODED = 4 * 1024**3


class Cell(NamedTuple):
    """One cell of the table: a method on a question set."""

    set: str
    method: str
    model: str
    k: int
    seed: int

    def __str__(self) -> str:
        return f"{self.method} on {self.set} ({self.model}, k={self.k}, seed {self.seed})"


@dataclass(frozen=True)
class Record:
    """What was asked, retrieved, generated and scored for one question of one cell, and what it cost."""

    set: str
    method: str
    model: str
    k: int
    seed: int
    question_id: str
    question: str
    answers: tuple[str, ...]
    kind: QuestionKind
    group: str
    raw: str
    """The text as it was generated."""
    prediction: str
    em: float
    f1: float
    precision: float
    recall: float
    correct: bool
    parsed: bool
    strict_correct: bool
    strict_parsed: bool
    release_correct: bool
    release_parsed: bool
    passage_ids: tuple[str, ...]
    passage_scores: tuple[float, ...]
    prompt_tokens: int
    completion_tokens: int
    milliseconds: float
    bytes_fetched: int
    note: str = ""
    demonstration_ids: tuple[str, ...] = ()
    """The ids, in their file, of those that the question had; the last is next to it in a prompt."""

    @classmethod
    def of(
        cls, cell: Cell, question: Question, raw: str, prediction: str, scores: AnswerScore, **measured: Any
    ) -> Record:
        """A question's answer with its scores; `measured` are the other fields."""
        return cls(
            **cell._asdict(),
            question_id=question.id,
            question=question.question,
            answers=question.answers,
            kind=question.kind,
            group=question.group,
            raw=raw,
            prediction=prediction,
            **asdict(scores),
            **measured,
        )

    @property
    def cell(self) -> Cell:
        """The cell that it belongs to."""
        return Cell(self.set, self.method, self.model, self.k, self.seed)


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_TEXTS, _FLOATS = pa.list_(_field("item", pa.string())), pa.list_(_field("item", pa.float64()))

RECORD = pa.schema(
    [
        *(_field(name, pa.string()) for name in ("set", "method", "model")),
        *(_field(name, pa.int64()) for name in ("k", "seed")),
        *(_field(name, pa.string()) for name in ("question_id", "question")),
        _field("answers", _TEXTS),
        *(_field(name, pa.string()) for name in ("kind", "group", "raw", "prediction")),
        *(_field(name, pa.float64()) for name in ("em", "f1", "precision", "recall")),
        *(_field(name, pa.bool_()) for name in ("correct", "parsed")),
        *(_field(f"{reader}_{name}", pa.bool_()) for reader in CLOSED_READERS for name in ("correct", "parsed")),
        _field("passage_ids", _TEXTS),
        _field("passage_scores", _FLOATS),
        *(_field(name, pa.int64()) for name in ("prompt_tokens", "completion_tokens")),
        _field("milliseconds", pa.float64()),
        _field("bytes_fetched", pa.int64()),
        _field("note", pa.string()),
        _field("demonstration_ids", _TEXTS),
    ]
)
"""The columns of a file of records."""

_LATER = {"demonstration_ids"}
"""Lists that files of earlier versions lack: they are read as empty."""

_SCORES = ("em", "f1", "precision", "recall")
_COUNTS = ("k", "prompt_tokens", "completion_tokens", "milliseconds", "bytes_fetched")


def write_records(
    storage: Storage, name: str, records: Sequence[Record], metadata: Mapping[str, str] | None = None
) -> None:
    """Write the records of one cell as the file `name`, complete or not at all, with notes about how they were made.

    Raises `EvaluationError` for records of several cells, two records of a question, or impossible values.
    """
    _check_values(name, records)
    problems = mismatches((r.question_id for r in records), {r.question_id for r in records})
    refuse(name, [*_several_cells(records), *problems], "not_one_cell")
    try:
        table = pa.Table.from_pylist([asdict(record) for record in records], schema=RECORD)
    except (pa.ArrowException, TypeError, UnicodeEncodeError) as error:
        raise EvaluationError(
            f"{name}: a record does not fit the columns: {error}", code="bad_record", name=name
        ) from error
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(dict(metadata or {})), file, compression="zstd")
    storage.write(name, file.getvalue())


def read_records(storage: Storage, name: str) -> list[Record]:
    """The records of a file; raises `EvaluationError` if it is damaged or holds something else."""
    table = read_record_table(storage, name)
    try:
        columns = [table.column(column).to_pylist() for column in RECORD.names]
    except ValueError as error:
        raise EvaluationError(
            f"{storage.uri}/{name} is damaged: a text is not UTF-8", code="records_damaged", name=name
        ) from error
    records = []
    for row in zip(*columns, strict=True):
        values = [tuple(value) if isinstance(value, list) else value for value in row]
        records.append(Record(**dict(zip(RECORD.names, values, strict=True))))
    _check_values(f"{storage.uri}/{name}", records)
    return records


def read_metadata(storage: Storage, name: str) -> dict[str, str]:
    """The notes about how the records were made."""
    metadata = read_record_table(storage, name).schema.metadata or {}
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in metadata.items()}


def read_record_table(storage: Storage, name: str) -> pa.Table:
    """The columns of `RECORD` as an Arrow table, with the file's notes; other columns are left out."""
    where = f"{storage.uri}/{name}"
    data = storage.read(name, 0, _MOST_BYTES + 1)
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        decoded = sum(group.total_byte_size for group in groups)
        rows = file.metadata.num_rows
        if rows > MOST_RECORDS or len(data) > _MOST_BYTES or decoded > _MOST_BYTES_DECODED:
            raise EvaluationError(
                f"{where} holds more than {MOST_RECORDS} records or is too large to read at once",
                code="too_many_records",
                name=name,
                records=rows,
            )
        missing = [column for column in RECORD.names if column not in file.schema_arrow.names]
        needed = [column for column in missing if column not in _LATER]
        refuse(f"{where} is not a file of records", mismatch("columns missing", needed), "columns_missing")
        table = file.read(columns=[column for column in RECORD.names if column not in missing])
        notes = table.schema.metadata
        for column in missing:
            table = table.append_column(RECORD.field(column), pa.array([[]] * rows, RECORD.field(column).type))
        return table.select(RECORD.names).cast(RECORD).replace_schema_metadata(notes)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise EvaluationError(
            f"{where} is damaged or no file of records: {error}", code="records_damaged", name=name
        ) from error


def check_records(records: Sequence[Record], questions: Sequence[Question]) -> None:
    """Raise `EvaluationError`, with all problems, unless these are one cell's records of exactly these questions."""
    asked = {question.id: question for question in questions}
    changed = []
    for record in records:
        question = asked.get(record.question_id)
        if question and (record.question, record.answers, record.kind) != (
            question.question,
            question.answers,
            question.kind,
        ):
            changed.append(record.question_id)
    problems = [
        *_several_cells(records),
        *mismatches((record.question_id for record in records), asked),
        *mismatch("with other words, answers or kind than in the question set", sorted(changed)),
    ]
    cell = f"the records of {records[0].cell}" if records else "the records"
    refuse(f"{cell} do not match the {len(questions)} questions", problems)


def _several_cells(records: Iterable[Record]) -> list[Mismatch]:
    cells = sorted({record.cell for record in records})
    return mismatch("cells in one file", [str(cell) for cell in cells]) if len(cells) > 1 else []


def _check_values(where: str, records: Sequence[Record]) -> None:
    if len(records) > MOST_RECORDS:
        raise EvaluationError(
            f"{where}: {len(records)} records, but a file holds at most {MOST_RECORDS}",
            code="too_many_records",
            records=len(records),
        )
    faults = {record.question_id: fault for record in records if (fault := _fault(record))}
    shown = [f"{question_id} ({fault})" for question_id, fault in faults.items()]
    refuse(where, mismatch("records with impossible values", shown), "impossible_values")


def _fault(record: Record) -> str:
    values: dict[str, Any] = vars(record)
    for column in _SCORES:
        if not 0.0 <= values[column] <= 1.0:
            return f"{column} {values[column]} is not between 0 and 1"
    for column in _COUNTS:
        if not (math.isfinite(values[column]) and values[column] >= 0):
            return f"{column} {values[column]} is not a finite number from 0"
    if record.kind not in QUESTION_KINDS:
        return f"kind {record.kind!r:.40} is none of {', '.join(QUESTION_KINDS)}"
    if record.passage_scores and len(record.passage_scores) != len(record.passage_ids):
        return f"{len(record.passage_ids)} passages with {len(record.passage_scores)} scores"
    return ""
