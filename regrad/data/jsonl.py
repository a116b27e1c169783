"""One JSON object a line: the only reader and the only writer of such files.

Any fsspec URI, plain or compressed; lines are streamed and bounded, and every error names the file and the line.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from regrad.data.files import AN_ARRAY, LINE_TOO_LONG, each_line
from regrad.errors import CorpusError, RegradError

_SHOWN_CHARACTERS = 80
_BOM = "begins with a byte order mark (BOM), as files do that were joined; take it out"
_NULS = "it holds NUL bytes, as text in UTF-16 does; write it as UTF-8"


class RawLine(NamedTuple):
    """One line of a file (or row, as the JSON object that it would be), or what is known to be wrong with it.

    What shows only when the JSON is decoded, `decode` raises.
    """

    uri: str
    number: int
    """From 1."""
    line: bytes
    """UTF-8; only the beginning of a line with a problem."""
    read_bytes: int
    """How much of the stored file was read for this line and the blank ones before it."""
    problem: str = ""
    unit: str = "line"
    last_line: int = 0
    """Of a record of several lines; 0: of one."""

    @property
    def last(self) -> int:
        """The number of its last line."""
        return self.last_line or self.number

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.uri} {self.unit} {self.number}"

    def decode(self) -> Any:
        """The JSON value; raises `CorpusError` naming file, line and what is wrong."""
        return decode(self.line, self.where, self.problem)


def raw_lines(uri: str) -> Iterator[RawLine]:
    """The non-blank lines of a file, good and bad; raises `CorpusError` if the file cannot be read."""
    number = skipped = 0
    for line, read_bytes, cut in each_line(uri):
        number += 1
        if cut:
            yield RawLine(uri, number, shown(line).encode(), skipped + read_bytes, LINE_TOO_LONG)
        elif line and not line.isspace():
            yield RawLine(uri, number, line, skipped + read_bytes)
        else:
            skipped += read_bytes
            continue
        skipped = 0


def read_jsonl(uri: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object) of every non-blank line; raises `CorpusError` for the first bad one."""
    for line in raw_lines(uri):
        yield line.where, as_object(line.decode(), line.where)


def parse_jsonl(
    data: str | bytes, where: str, error: type[RegradError] = CorpusError
) -> Iterator[tuple[str, dict[str, Any]]]:
    """As `read_jsonl`, of content that has been read; raises `error` for the first bad line."""
    lines = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    for number, line in enumerate(lines.split(b"\n"), start=1):
        if line.strip():
            place = f"{where} line {number}"
            yield place, as_object(decode(line, place, error=error), place, error)


def encode_jsonl(records: Iterable[Mapping[str, Any]]) -> bytes:
    """The records, one a line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def decode(line: bytes, where: str, problem: str = "", error: type[RegradError] = CorpusError) -> Any:
    """The JSON value of a line, which must not be an array; raises `error` naming `where`, or the known problem."""
    if problem:
        raise error(f"{where}: {problem}", code="bad_line", where=where, problem=problem)
    if line.lstrip()[:1] == b"[":
        raise error(f"{where} {AN_ARRAY}", code="array", where=where)
    if line.startswith(codecs.BOM_UTF8):
        raise error(f"{where} {_BOM}", code="byte_order_mark", where=where)
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as reason:
        text = _NULS if b"\x00" in line else str(reason)
        raise error(f"{where} is not JSON: {text}", code="not_json", where=where) from reason


def as_object(value: Any, where: str, error: type[RegradError] = CorpusError) -> dict[str, Any]:
    """The value if it is a JSON object; raises `error` naming `where`."""
    if not isinstance(value, dict):
        raise error(f"{where}: a JSON object is expected, found {as_found(value)}", code="no_object", where=where)
    return value


def as_found(value: Any) -> str:
    """The beginning of a wrong value, for an error: a string as Python shows it, all else as in JSON (null, NaN)."""
    return f"{value!r:.60}" if isinstance(value, str) else f"{json.dumps(value, ensure_ascii=False, default=repr):.60}"


def shown(line: bytes) -> str:
    """The beginning of a line, so that a person can find it."""
    return line[: 4 * _SHOWN_CHARACTERS].decode(errors="replace")[:_SHOWN_CHARACTERS].strip()
