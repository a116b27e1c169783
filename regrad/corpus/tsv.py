"""Tab-separated passages, as DPR's `psgs_w100.tsv`: a header, fields quoted as in csv with doubled quotes."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator, Sequence

from regrad.corpus.lines import MAX_LINE_BYTES, TOO_LONG, Line
from regrad.corpus.records import RawRecord, as_json, shown

_DPR = ("id", "text", "title")

# The csv module's own limit, of the process, is 128 KiB.
csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))


class TsvReader:
    """The records of one file, from its lines. The names in the header decide the columns; without, they are DPR's."""

    def __init__(self, uri: str, lines: Iterator[Line]) -> None:
        self._uri, self._lines = uri, lines
        self._again: deque[Line] = deque()
        self._names: Sequence[str] = ()
        self._number, self._read_bytes = 0, 0

    def __iter__(self) -> Iterator[RawRecord]:
        while (line := self._next()) is not None:
            number, (data, _, cut) = self._number, line
            if not data.strip():
                continue
            record, problem = (b"", TOO_LONG) if cut else self._read(data)
            if record or problem:
                read_bytes, self._read_bytes = self._read_bytes, 0
                yield RawRecord(self._uri, number, record or shown(data).encode(), read_bytes, problem)

    def _read(self, data: bytes) -> tuple[bytes, str]:
        """The record of the row that begins with this line, or what is wrong with it; of a header neither."""
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
        if b'"' not in data:
            return data.removesuffix(b"\r").decode().split("\t")
        taken: list[Line] = []
        try:
            return next(csv.reader(self._text(data, taken), delimiter="\t", strict=True))
        except (csv.Error, ValueError):
            # A quote that nothing closes takes the lines below with it: they are read again, as rows of their own.
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
                raise ValueError(f"a quoted field is {TOO_LONG}")
            yield line[0].decode() + "\n"

    def _take_header(self, fields: list[str]) -> bool:
        names = [name.strip().lower() for name in fields]
        found = "text" in names and ("id" in names or "_id" in names)
        self._names = names if found else _DPR
        return found

    def _record(self, fields: list[str]) -> bytes:
        if len(fields) != len(self._names):
            wanted = f"{len(self._names)} columns ({', '.join(self._names)})"
            raise ValueError(f"expected {wanted}, found {len(fields)}")
        row = dict(zip(self._names, fields, strict=True))
        return as_json(row.get("id", row.get("_id")), row.get("title"), row["text"])
