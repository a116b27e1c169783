"""Reading a corpus record by record: jsonl, Parquet, tsv. A bad record comes with its reason and stops nothing."""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from regrad.data.field_names import ID, TEXT, is_absent, named
from regrad.data.files import (
    LINE_TOO_LONG,
    MAX_LINE_BYTES,
    PARQUET,
    TSV,
    Line,
    corpus_files,
    each_line,
    file_format,
    reading,
)
from regrad.data.jsonl import RawLine, raw_lines, shown
from regrad.data.passages import Passage, as_json
from regrad.errors import CorpusError

_ROWS = 256
_BUFFER = 1024 * 1024
# Columns are read side by side: a store's blocks are kept for all of them, not only the last one.
_REMOTE = {"block_size": 4 * 1024 * 1024, "cache_type": "blockcache", "cache_options": {"maxblocks": 16}}


def read_parquet(uri: str) -> Iterator[RawLine]:
    """The rows in order, a few at a time; raises `CorpusError` if the file is damaged or lacks a column."""
    with reading(uri):
        fs, path = fsspec.core.url_to_fs(uri)
        with fs.open(path, "rb", **_REMOTE) as raw:
            size = raw.seek(0, 2)
            if size:
                yield from _rows(uri, pq.ParquetFile(raw, buffer_size=_BUFFER), size)


def _rows(uri: str, file: pq.ParquetFile, size: int) -> Iterator[RawLine]:
    columns = _columns(uri, file.schema_arrow)
    total, number = file.metadata.num_rows, 0
    for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
        cells = [_cells(batch.column(name)) for name in columns]
        for row in zip(*cells, strict=True):
            share = size * (number + 1) // total - size * number // total
            number += 1
            yield RawLine(uri, number, *_checked(columns, row, share), "row")


def _columns(uri: str, schema: pa.Schema) -> list[str]:
    """The names of the columns of id, text and, if there is one, title."""
    there = dict.fromkeys(schema.names)
    id_name, *others = (next((name for name in names if name in there), names[0]) for names in (ID, TEXT))
    columns = [id_name, *others, *(["title"] if "title" in there else [])]
    for name in columns:
        if name not in there:
            found = ", ".join(schema.names)
            raise CorpusError(f"{uri} has no column '{name}'; it has {found}", code="missing_field", field=name)
        kind = _plain(schema.field(name).type)
        numbers = pa.types.is_integer(kind) if name == id_name else pa.types.is_floating(kind)
        if not (_is_text(kind) or pa.types.is_null(kind) or numbers):
            text = f"{uri}: column '{name}' must hold strings, found {kind}"
            raise CorpusError(text, code="wrong_field", field=name)
    return columns


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _cells(column: pa.Array) -> list[Any]:
    """UTF-8, not yet checked: Arrow would refuse a whole column for one wrong byte.

    pandas writes a column in which nothing stands as floats, all of them NaN: those are null, and any other float is
    left for the check of the record to refuse.
    """
    plain = column.cast(_plain(column.type))
    if pa.types.is_floating(plain.type):
        return [None if is_absent(value) else value for value in plain.to_pylist()]
    return list((plain if _is_text(plain.type) else plain.cast(pa.string())).cast(pa.large_binary()).to_pylist())


def _checked(columns: Sequence[str], row: tuple[Any, ...], share: int) -> tuple[bytes, int, str]:
    """The JSON object, or the row's beginning and what is wrong."""
    try:
        cells = [cell.decode() if isinstance(cell, bytes) else cell for cell in row]
        line, problem = as_json(dict(zip(columns, cells, strict=True))), ""
    except UnicodeDecodeError as error:
        line, problem = b"", str(error)
    if len(line) > MAX_LINE_BYTES:
        problem = LINE_TOO_LONG
    return (_beginning(row) if problem else line), share, problem


def _beginning(row: tuple[Any, ...]) -> bytes:
    cells = [shown(cell) if isinstance(cell, bytes) else "" for cell in row]
    return shown(json.dumps(cells, ensure_ascii=False).encode()).encode()


_DPR = ("id", "text", "title")

# The csv module's own limit, which holds for the whole process, is 128 KiB.
csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))


class TsvReader:
    """The records of one file, from its lines. A header names the columns; without one they are DPR's."""

    def __init__(self, uri: str, lines: Iterator[Line]) -> None:
        self._uri = uri
        self._lines = lines
        self._again: deque[Line] = deque()  # lines to be read once more
        self._names: Sequence[str] = ()
        self._number = 0
        self._read_bytes = 0

    def __iter__(self) -> Iterator[RawLine]:
        while (line := self._next()) is not None:
            number, (data, _, cut) = self._number, line
            if not data.strip():
                continue
            record, problem = (b"", LINE_TOO_LONG) if cut else self._read(data)
            if record or problem:
                read_bytes, self._read_bytes = self._read_bytes, 0
                yield RawLine(
                    self._uri, number, record or shown(data).encode(), read_bytes, problem, last_line=self._number
                )

    def _read(self, data: bytes) -> tuple[bytes, str]:
        """The record of the row that begins with this line, or what is wrong with it; neither for a header."""
        try:
            fields = self._fields(data)
            if not self._names and self._take_header(fields):
                return b"", ""
            return self._record(fields), ""
        except (csv.Error, ValueError) as error:
            return b"", f"not a row of tab-separated values: {error}"

    def _next(self) -> Line | None:
        line = self._again.popleft() if self._again else next(self._lines, None)
        if line is not None:
            self._number += 1
            self._read_bytes += line[1]
        return line

    def _fields(self, data: bytes) -> list[str]:
        """The fields of the row that begins with this line; raises `csv.Error` or `ValueError`."""
        if b'"' not in data:  # the usual case, many times faster than the csv module
            return data.removesuffix(b"\r").decode().split("\t")
        taken: list[Line] = []
        try:
            return next(csv.reader(self._text(data, taken), delimiter="\t", strict=True))
        except (csv.Error, ValueError):
            # A quote that is never closed swallows the lines below it: they are read again, as separate rows.
            self._number -= len(taken)
            self._read_bytes -= sum(read_bytes for _, read_bytes, _ in taken)
            self._again.extendleft(reversed(taken))
            raise

    def _text(self, data: bytes, taken: list[Line]) -> Iterator[str]:
        yield data.decode() + "\n"
        size = len(data)
        while (line := self._next()) is not None:
            taken.append(line)
            size += len(line[0]) + 1
            if line[2] or size > MAX_LINE_BYTES:
                raise ValueError(f"a quoted field is {LINE_TOO_LONG}")
            yield line[0].decode() + "\n"

    def _take_header(self, fields: list[str]) -> bool:
        names = [name.strip().lower() for name in fields]
        found = not (set(names).isdisjoint(ID) or set(names).isdisjoint(TEXT))
        self._names = names if found else _DPR
        return found

    def _record(self, fields: list[str]) -> bytes:
        if len(fields) != len(self._names):
            wanted = f"{len(self._names)} columns ({', '.join(self._names)})"
            raise ValueError(f"expected {wanted}, found {len(fields)}")
        row = dict(zip(self._names, fields, strict=True))
        return as_json({name: row[name] for name in (named(row, ID), "title", named(row, TEXT)) if name in row})


def read_passages(uri: str) -> Iterator[Passage]:
    """All passages of a corpus, in order; raises `CorpusError` for the first bad one, or if there is none."""
    empty = True
    for file in corpus_files(uri):
        for record in read_raw(file.uri):
            empty = False
            yield _passage(record)
    if empty:
        raise CorpusError(f"{uri}: the corpus is empty", code="empty", uri=uri)


def _passage(record: RawLine) -> Passage:
    try:
        return Passage.from_record(record.decode(), record.where)
    except CorpusError as error:
        error.args = (
            f"{error}; correct the {record.unit}, or run the file through `regrad corpus`, which leaves it out",
        )
        raise


def read_raw(uri: str) -> Iterator[RawLine]:
    """The records of one file in order, good and bad, streamed; raises `CorpusError` if the file cannot be read."""
    kind = file_format(uri)
    if kind == PARQUET:
        return read_parquet(uri)
    return iter(TsvReader(uri, each_line(uri))) if kind == TSV else raw_lines(uri)
