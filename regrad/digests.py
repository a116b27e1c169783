"""SHA-256 of a JSON value, of a file and of what comes in pieces.

Digests are in the names and the cards of what lies on disk: the form of what is hashed is part of a file format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

SHORT = 16
"""The hex digits of a short digest."""


def pieces_digest(pieces: Iterable[bytes | memoryview]) -> str:
    """64 hex digits of what the pieces are one after the other."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def file_digest(path: str | Path) -> str:
    """64 hex digits of a local file's content, which is read as a stream."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_bytes(value: Any, *, sort_keys: bool = True, ensure_ascii: bool = True) -> bytes:
    """A value that JSON can hold as it is hashed: keys in order, all in ASCII.

    Some digests that are on disk are of another form, and say so by the two switches, which are `json.dumps`'s.
    """
    return json.dumps(value, sort_keys=sort_keys, ensure_ascii=ensure_ascii).encode()


def json_digest(value: Any, digits: int = SHORT, *, sort_keys: bool = True, ensure_ascii: bool = True) -> str:
    """The first hex digits of the SHA-256 of `json_bytes`: equal values have equal ones, in any order of their keys."""
    return pieces_digest([json_bytes(value, sort_keys=sort_keys, ensure_ascii=ensure_ascii)])[:digits]


def records_digest(records: Iterable[object], head: bytes = b"") -> str:
    """16 hex digits of `head` and all records as Python writes them (`repr`): what a resumed run must find again.

    The names of the records' classes and of their fields are part of it.
    """
    return pieces_digest(chain([head], (repr(record).encode() for record in records)))[:SHORT]
