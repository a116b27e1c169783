"""Passages in Parquet: columns `id` (or `_id`), `text` and, if there is one, `title`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from regrad.corpus.files import reading
from regrad.corpus.lines import MAX_LINE_BYTES, TOO_LONG
from regrad.corpus.records import RawRecord, as_json, shown
from regrad.errors import CorpusError

_ROWS = 256
_BUFFER = 1024 * 1024
_REMOTE = {"block_size": 4 * 1024 * 1024, "cache_type": "blockcache", "cache_options": {"maxblocks": 16}}
"""Columns are read side by side: a store's blocks are kept for all of them, not only the last one."""


def read_parquet(uri: str) -> Iterator[RawRecord]:
    """The rows in order, a few at a time; raises `CorpusError` if the file is damaged or lacks a column."""
    with reading(uri):
        fs, path = fsspec.core.url_to_fs(uri)
        with fs.open(path, "rb", **_REMOTE) as raw:
            size = raw.seek(0, 2)
            if size:
                yield from _rows(uri, pq.ParquetFile(raw, buffer_size=_BUFFER), size)


def _rows(uri: str, file: pq.ParquetFile, size: int) -> Iterator[RawRecord]:
    columns = _columns(uri, file.schema_arrow)
    total, number = file.metadata.num_rows, 0
    for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns.values())):
        cells = {field: _cells(batch.column(name)) for field, name in columns.items()}
        titles = cells.get("title", [None] * batch.num_rows)
        for row in zip(cells["id"], titles, cells["text"], strict=True):
            share = size * (number + 1) // total - size * number // total
            number += 1
            yield RawRecord(uri, number, *_checked(row, share), "row")


def _columns(uri: str, schema: pa.Schema) -> dict[str, str]:
    """Field -> name of the column."""
    named = "_id" if "id" not in schema.names and "_id" in schema.names else "id"
    columns = {"id": named, "text": "text"} | ({"title": "title"} if "title" in schema.names else {})
    for field, name in columns.items():
        if name not in schema.names:
            raise CorpusError(f"{uri} has no column '{name}'; it has {', '.join(schema.names)}")
        kind = _plain(schema.field(name).type)
        if not (_is_text(kind) or pa.types.is_null(kind) or (field == "id" and pa.types.is_integer(kind))):
            raise CorpusError(f"{uri}: column '{name}' must hold strings, found {kind}")
    return columns


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _cells(column: pa.Array) -> list[bytes | None]:
    """UTF-8, not yet checked: Arrow would refuse a whole column for one wrong byte."""
    plain = column.cast(_plain(column.type))
    return list((plain if _is_text(plain.type) else plain.cast(pa.string())).cast(pa.large_binary()).to_pylist())


def _checked(row: tuple[bytes | None, ...], share: int) -> tuple[bytes, int, str]:
    """The JSON object, or the row's beginning and what is wrong."""
    try:
        line, problem = as_json(*(cell if cell is None else cell.decode() for cell in row)), ""
    except UnicodeDecodeError as error:
        line, problem = b"", str(error)
    if len(line) > MAX_LINE_BYTES:
        problem = TOO_LONG
    return (_beginning(row) if problem else line), share, problem


def _beginning(row: tuple[Any, ...]) -> bytes:
    return shown(json.dumps([shown(cell or b"") for cell in row], ensure_ascii=False).encode()).encode()
