"""A passage: checked when it is made from a record, written as one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from regrad.data.field_names import CONTENTS, ID, TEXT, is_absent, listed_names, named, split_contents
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

    @property
    def digest(self) -> bytes:
        """64 bytes, the SHA-256 of the id and `text_hash`: what the names of files that are made of passages hash."""
        return hashlib.sha256(self.id.encode()).digest() + bytes.fromhex(self.text_hash)

    @staticmethod
    def from_record(record: Any, where: str = "record") -> Passage:
        """Check one decoded record; raises `CorpusError` naming `where`.

        `_id` or `docid` will do for `id`, which may be a whole number, and `contents` for `text`
        (`regrad.data.field_names`). A title that is null or NaN is none.
        """
        if not isinstance(record, dict):
            problem = f"{where}: expected an object with id, title, text; found {as_found(record)}"
            raise CorpusError(problem, code="no_object", where=where)
        identifier, text_name = passage_id_of(record, where), named(record, TEXT)
        title: Any = record.get("title")
        text: Any = record.get(text_name)
        if is_absent(title):
            title = ""
        _check_text(record, "title", title, False, where)
        _check_text(record, text_name, text, False, where)
        if text_name == CONTENTS:
            within, text = split_contents(text)
            title = title or within
        return Passage(identifier, title, text)


def passage_id_of(record: Mapping[str, Any], where: str) -> str:
    """The id that a record names, as `Passage.from_record` reads it; raises `CorpusError` naming `where`."""
    name = named(record, ID)
    found = as_id(record.get(name))
    _check_text(record, name, found, True, where)
    return str(found)


def as_id(value: Any) -> Any:
    """A whole number as the text of it; anything else as it is."""
    return str(value) if type(value) is int else value


def _check_text(record: Mapping[str, Any], name: str, value: Any, is_id: bool, where: str) -> None:
    expected = "a non-empty string" if is_id else "a string"
    if name not in record and name != "title":
        has = listed_names(record)
        text = f"{where}: field '{name}' is missing ({expected} is expected; it has {has})"
        raise CorpusError(text, code="missing_field", where=where, field=name)
    if not isinstance(value, str) or (is_id and not value):
        text = f"{where}: field '{name}' must be {expected}, found {as_found(record[name])}"
        raise CorpusError(text, code="wrong_field", where=where, field=name)
    if not _usable(value):
        text = f"{where}: field '{name}' holds a NUL or a character that is not valid Unicode"
        raise CorpusError(text, code="wrong_field", where=where, field=name)


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


def as_json(fields: Mapping[str, Any]) -> bytes:
    """A row of a table as the JSON object that it would be in a jsonl file."""
    return json.dumps(fields, ensure_ascii=False).encode()
