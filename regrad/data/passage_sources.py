"""Where each passage of a corpus is from: `sources.jsonl`, a line for each of `corpus.jsonl`, in its order.

It is a file of its own, so that neither the passages nor their hashes depend on where they were found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from regrad.data.jsonl import encode_jsonl, read_jsonl
from regrad.errors import CorpusError

SOURCES = "sources.jsonl"


@dataclass(frozen=True)
class PassageOrigin:
    """The place of a passage.

    `first` to `last`, from 1, are the lines, rows, items, pages or, as `unit` says, characters of the file (of HTML: of
    its text) that it is from; `start` to before `end` are the characters of the document, the page or the record's
    text.
    """

    id: str
    file: str
    unit: str
    first: int
    last: int
    start: int
    end: int

    def encoded(self) -> bytes:
        """The line of the file."""
        return encode_jsonl([asdict(self)])


def read_sources(uri: str) -> Iterator[PassageOrigin]:
    """The origin of each passage of the corpus that `regrad corpus` has made at `uri`, in order.

    For notebooks and programs of one's own that lead a reader from a passage back to its file; regrad itself does not
    ask where a passage is from.

    Raises `CorpusError` if there is no such file, or for the first bad line.
    """
    for where, record in read_jsonl(f"{uri}/{SOURCES}"):
        try:
            yield PassageOrigin(**record)
        except TypeError as error:
            raise CorpusError(f"{where} is not of a passage's source: {error}", code="bad_line", where=where) from error
