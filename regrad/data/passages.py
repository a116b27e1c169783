"""A passage, the raw records that passages are parsed from, and their JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from regrad.errors import CorpusError


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
        """Check one decoded record (`_id`, as BEIR has it, will do for `id`); raises `CorpusError` naming `where`."""
        if not isinstance(record, dict):
            raise CorpusError(f"{where}: expected an object with id, title, text; found {type(record).__name__}")
        passage_id: Any = record["id"] if "id" in record else record.get("_id")
        title: Any = record.get("title", "")
        text: Any = record.get("text")
        for field, value in (("id", passage_id), ("title", title), ("text", text)):
            if not isinstance(value, str) or (field == "id" and not value):
                kind = "a non-empty string" if field == "id" else "a string"
                raise CorpusError(f"{where}: field '{field}' must be {kind}, found {value!r:.60}")
            if not _usable(value):
                raise CorpusError(f"{where}: field '{field}' holds a NUL or a character that is not valid Unicode")
        return Passage(passage_id, title, text)


def _usable(text: str) -> bool:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return "\x00" not in text


def parse_passage(line: bytes, problem: str = "", where: str = "record") -> Passage:
    """The passage of one JSON object; raises `CorpusError` naming `where` and what is wrong, or the known problem."""
    if problem:
        raise CorpusError(f"{where}: {problem}")
    return Passage.from_record(decode(line, where), where)


def decode(line: bytes, where: str) -> Any:
    """The JSON value of a line; raises `CorpusError` naming `where`."""
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where} is not JSON: {error}") from error


def passage_id(text: str) -> str:
    """The id of a passage that comes without one: 16 hex digits of its text's SHA-256.

    The same wherever the text is found, and for any text: a lone surrogate, which a JSON escape can give, is no error.
    """
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


_SHOWN_CHARACTERS = 80


class RawRecord(NamedTuple):
    """One line or row of a file: what should be a passage as a JSON object, or what is known to be wrong with it.

    What only decoding the JSON can tell, `passage` tells.
    """

    uri: str
    number: int
    """Of the line or row, from 1."""
    line: bytes
    """UTF-8; of a record with a problem only the beginning."""
    read_bytes: int
    """How much of the file, as it is stored, was read for this record and those before it that are blank."""
    problem: str = ""
    unit: str = "line"

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.uri} {self.unit} {self.number}"

    def passage(self) -> Passage:
        """The passage; raises `CorpusError` naming file, line and what is wrong."""
        return parse_passage(self.line, self.problem, self.where)


def shown(line: bytes) -> str:
    """The beginning of a line, by which a person can find it."""
    return line[: 4 * _SHOWN_CHARACTERS].decode(errors="replace")[:_SHOWN_CHARACTERS].strip()


def as_json(passage_id: str | None, title: str | None, text: str | None) -> bytes:
    """A row of a table as the JSON object that it would be in a jsonl file."""
    return json.dumps({"id": passage_id, "title": title or "", "text": text}, ensure_ascii=False).encode()


def encode_records(records: Iterable[Mapping[str, Any]]) -> bytes:
    """The records as jsonl."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def encode_passages(passages: Iterable[Passage]) -> bytes:
    """The passages as jsonl."""
    return encode_records(asdict(passage) for passage in passages)
