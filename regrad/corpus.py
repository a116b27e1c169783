"""Passages and how they are read: `id`, `title`, `text`, one JSON object a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from lzma import LZMAError
from typing import Any
from zipfile import BadZipFile

import fsspec
from botocore.exceptions import BotoCoreError

from regrad.errors import CorpusError

MAX_LINE_BYTES = 8 * 1024 * 1024
"""A longer line of a corpus is refused: it is not a passage."""


@dataclass(frozen=True)
class Passage:
    """A piece of a document. The id is the caller's and stable; everything is keyed by it."""

    id: str
    title: str
    text: str

    @property
    def text_hash(self) -> str:
        """SHA-256 (hex) of title and text: tells whether an atom still belongs to the words it came from."""
        return hashlib.sha256(f"{self.title}\x00{self.text}".encode()).hexdigest()

    @staticmethod
    def from_record(record: Any, where: str = "record") -> Passage:
        """Check one decoded record; raises `CorpusError` naming `where` and the field."""
        if not isinstance(record, dict):
            raise CorpusError(f"{where}: expected an object with id, title, text; found {type(record).__name__}")
        values = [record.get("id"), record.get("title", ""), record.get("text")]
        for field, value in zip(("id", "title", "text"), values, strict=True):
            if not isinstance(value, str) or (field == "id" and not value):
                kind = "a non-empty string" if field == "id" else "a string"
                raise CorpusError(f"{where}: field '{field}' must be {kind}, found {value!r:.60}")
            if not _encodable(value):
                raise CorpusError(f"{where}: field '{field}' holds a character that is not valid Unicode")
        return Passage(*values)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_passages(uri: str) -> Iterator[Passage]:
    """Passages of a jsonl file (optionally compressed, any fsspec URI), in file order."""
    for number, record in read_records(uri):
        yield Passage.from_record(record, f"{uri} line {number}")


def read_records(uri: str) -> Iterator[tuple[int, Any]]:
    """(line number, decoded JSON) of every non-empty line; raises `CorpusError` naming the line that is not JSON."""
    try:
        with fsspec.open(uri, "rt", encoding="utf-8", compression="infer") as file:
            for number, line in enumerate(file, start=1):
                if len(line) > MAX_LINE_BYTES:
                    raise CorpusError(f"{uri} line {number}: longer than {MAX_LINE_BYTES} bytes")
                if line.strip():
                    yield number, _decode(line, uri, number)
    except FileNotFoundError as error:
        raise CorpusError(f"{uri} does not exist") from error
    except (OSError, ValueError, EOFError, ImportError, BotoCoreError, LZMAError, BadZipFile) as error:
        raise CorpusError(f"{uri} cannot be read: {error}") from error


def _decode(line: str, uri: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{uri} line {number} is not JSON: {error}") from error


def encode_passages(passages: Iterable[Passage]) -> bytes:
    """The passages as jsonl."""
    return "".join(json.dumps(asdict(passage), ensure_ascii=False) + "\n" for passage in passages).encode()
