"""Records of JSON files as Pyserini's JsonCollection has them: one object, an array of them, or one after another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from regrad.data.compression import unpacked
from regrad.data.files import IS_UTF_16, LINE_TOO_LONG, MAX_LINE_BYTES, UTF_16, read_whole
from regrad.data.jsonl import RawLine, as_found, shown
from regrad.data.passages import as_json
from regrad.errors import CorpusError

JSON = (".json",)
ITEM = "item"
_MOST_BYTES = 32 * 1024 * 1024
_BLANK = re.compile(r"[ \t\r\n]*")


def is_json(uri: str) -> bool:
    """Whether it is such a file, as its name says."""
    return unpacked(uri).endswith(JSON)


def read_json(uri: str) -> Iterator[RawLine]:
    """The objects in order, good and bad; the whole file is in memory, so a large one is refused, with what to do.

    Raises `CorpusError` if it cannot be read: at the first fault in its JSON, after the objects before it.
    """
    data = read_whole(uri, _MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        advice = "make it .jsonl, one object a line, with `jq -c '.[]'` (of an array) or `jq -c .` (of objects)"
        raise CorpusError(f"{uri} is larger than {_MOST_BYTES >> 20} MiB of JSON; {advice}", code="file_too_large")
    if data.startswith(UTF_16):
        raise CorpusError(f"{uri} {IS_UTF_16}", code="utf_16", uri=uri)
    for number, value in enumerate(_values(uri, data), start=1):
        line, problem = _encoded(value), ""
        if not isinstance(value, dict):
            problem = f"a JSON object is expected, found {as_found(value)}"
        elif len(line) > MAX_LINE_BYTES:
            problem = LINE_TOO_LONG
        yield RawLine(uri, number, shown(line).encode() if problem else line, 0, problem, ITEM)


def _values(uri: str, data: bytes) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    try:
        text = data.decode("utf-8-sig")
        while (at := _end_of_blank(text, at)) < len(text):
            value, at = decoder.raw_decode(text, at)
            yield from value if isinstance(value, list) else [value]
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{uri} is not JSON: {error}", code="not_json", where=uri) from error


def _end_of_blank(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _encoded(value: Any) -> bytes:
    try:
        return as_json(value)
    except UnicodeEncodeError:  # half of a surrogate pair, which the check of the record names
        return json.dumps(value).encode()
