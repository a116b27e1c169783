"""What `regrad corpus` has made so far: parts beside its output, so that a run that was stopped goes on after the last.

A part is one file, written whole or not at all. Its first line says how far the corpus was made when it was written;
then come the hashes of the passages since the part before, the passages themselves, where they are from, and what was
rejected. A part is
valid as long as all that it and those before it were made of is what it was: its `key` is a hash of the settings and of
the versions of the files up to there. When all files are done, the parts are joined.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import IO

from pydantic import Field, ValidationError

from regrad.settings import Settings
from regrad.storage import Storage, parts_uri

_MOST_BYTES = 8 * 1024 * 1024
_MOST_SECONDS = 10.0


class Reached(Settings):
    """How far a corpus is made: all of `files` files, and `items` of the next: records, or the one document that it is.

    `counts` are those of the card, and `first` says what was wrong with the first that was rejected.
    """

    files: int = 0
    items: int = 0
    counts: dict[str, int] = Field({})
    first: str = ""


class _Head(Reached):
    """The first line of a part, with the bytes of its hashes, of its passages and of where they are from."""

    key: str
    hashes: int
    passages: int
    sources: int


class CorpusParts:
    """The parts of the corpus at `output`; `keys` has the key of its first 0, 1, 2, ... files."""

    def __init__(self, output: str, keys: Sequence[str]) -> None:
        self.uri = parts_uri(output)
        self._storage = Storage(self.uri)
        self._keys = keys
        self._count = 0
        self._begin()

    def _begin(self) -> None:
        self._hashes, self._passages = bytearray(), bytearray()
        self._sources, self._rejected = bytearray(), bytearray()
        self._began = time.monotonic()

    def valid(self, strict: bool) -> Iterator[tuple[Reached, bytes]]:
        """How far each valid part goes, and its hashes; of a strict corpus those before the first fault."""
        there = set(self._storage.list())
        while (name := _name(self._count)) in there:
            try:
                head, content = self._read(name)
            except ValidationError:  # of another version of regrad
                return
            started = head.files + (head.items > 0)
            if self._keys[started : started + 1] != [head.key] or (strict and head.counts.get("rejected")):
                return
            self._count += 1
            yield head, content[: head.hashes]

    def discard_others(self) -> int:
        """Remove what killed runs have left beside the valid parts; returns how many parts there were of it."""
        valid = {_name(number) for number in range(self._count)}
        others = sorted(self._storage.files().keys() - valid, reverse=True)
        for name in others:  # the last part first, so that never one is missing before another
            self._storage.remove_file(name)
        return sum(name.endswith(_ENDING) for name in others)

    def add(self, passage: bytes, source: bytes, hashes: bytes) -> None:
        """Put a passage into the part that is being made."""
        self._passages += passage
        self._sources += source
        self._hashes += hashes

    def reject(self, record: bytes) -> None:
        """Put what was rejected into the part that is being made."""
        self._rejected += record

    @property
    def full(self) -> bool:
        """Whether it is time to write the part that is being made."""
        size = len(self._passages) + len(self._sources) + len(self._rejected)
        return size > _MOST_BYTES or time.monotonic() - self._began > _MOST_SECONDS

    def write(self, reached: Reached) -> None:
        """Write the part that is being made: the corpus is made as far as this."""
        key = self._keys[reached.files + (reached.items > 0)]
        sizes = {"hashes": len(self._hashes), "passages": len(self._passages), "sources": len(self._sources)}
        head = _Head(**reached.model_dump(), key=key, **sizes)
        content = b"".join((self._hashes, self._passages, self._sources, self._rejected))
        self._storage.write(_name(self._count), head.model_dump_json().encode() + b"\n" + content)
        self._count += 1
        self._begin()

    def join(self, passages: IO[bytes], sources: IO[bytes], rejected: IO[bytes]) -> None:
        """Write all parts behind each other, down to the disk: they are removed next."""
        for number in range(self._count):
            head, content = self._read(_name(number))
            at = head.hashes
            for file, size in ((passages, head.passages), (sources, head.sources), (rejected, len(content))):
                file.write(content[at : at + size])
                at += size
        for file in (passages, sources, rejected):
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove all of them."""
        self._storage.remove()

    def _read(self, name: str) -> tuple[_Head, bytes]:
        line, _, content = self._storage.read(name).partition(b"\n")
        return _Head.model_validate_json(line), content


_ENDING = ".part"


def _name(number: int) -> str:
    return f"{number:08d}{_ENDING}"
