"""A passage: checked when it is made from a record, written as one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from regrad.data.jsonl import as_found, decode, encode_jsonl
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
        """Check one decoded record (`_id`, as in BEIR, counts as `id`); raises `CorpusError` naming `where`."""
        if not isinstance(record, dict):
            found = as_found(record)
            raise CorpusError(
                f"{where}: expected an object with id, title, text; found {found}", code="no_object", where=where
            )
        passage_id: Any = record["id"] if "id" in record else record.get("_id")
        title: Any = record.get("title", "")
        text: Any = record.get("text")
        for field, value in (("id", passage_id), ("title", title), ("text", text)):
            if not isinstance(value, str) or (field == "id" and not value):
                kind = "a non-empty string" if field == "id" else "a string"
                problem = f"must be {kind}, found {as_found(value)}"
                raise CorpusError(f"{where}: field '{field}' {problem}", code="wrong_field", where=where, field=field)
            if not _usable(value):
                problem = "holds a NUL or a character that is not valid Unicode"
                raise CorpusError(f"{where}: field '{field}' {problem}", code="wrong_field", where=where, field=field)
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
    return Passage.from_record(decode(line, where, problem), where)


def encode_passages(passages: Iterable[Passage]) -> bytes:
    """The passages as jsonl."""
    return encode_jsonl(map(asdict, passages))


def passage_id(text: str) -> str:
    """The id of a passage that comes without one: 16 hex digits of its text's SHA-256.

    It is the same wherever the text is found, and works for any text, even with a lone surrogate from a JSON escape.
    """
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def as_json(passage_id: str | None, title: str | None, text: str | None) -> bytes:
    """A row of a table as the JSON object that it would be in a jsonl file."""
    return json.dumps({"id": passage_id, "title": title or "", "text": text}, ensure_ascii=False).encode()
