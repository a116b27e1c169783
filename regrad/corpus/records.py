"""A record before it is checked."""

from __future__ import annotations

import json
from typing import NamedTuple

from regrad.corpus.passage import Passage, parse_passage

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
