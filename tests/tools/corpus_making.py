"""A corpus of many kinds of files, and its making by processes that are killed, each at one line of all that they run.

python -m tests.tools.corpus_making SOURCES OUTPUT LINE ...

makes it at `OUTPUT-LINE` for each of the lines, by a process that kills itself there (SIGKILL), and prints how each
has ended. `regrad` is imported once: the processes are forked.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from regrad.data import corpus_parts
from regrad.data.corpus_maker import CARD, PASSAGES, REJECTED, CorpusConfig, CorpusMaker
from regrad.data.passage_sources import SOURCES
from regrad.storage import Storage
from tests.tools.dying import traced

TRACED = ("regrad/data/corpus_maker.py", "regrad/data/corpus_parts.py", "regrad/storage.py")
_LONG = " ".join(f"Sentence number {number} is short." for number in range(20))


def write_sources(folder: Path) -> None:
    """Records and documents in seven files, with what repeats, what is rejected, a damaged and an empty file."""
    (folder / "docs" / "deep").mkdir(parents=True)
    records = folder / "records"
    records.mkdir()
    first = lines({"id": "1", "text": "The harbour burned."}, {"id": "2"}, {"id": "3", "title": "T", "text": _LONG})
    (records / "a.jsonl.zst").write_bytes(pa.compress(first, "zstd", asbytes=True))
    (records / "b.jsonl").write_text("")
    again = (
        {"id": "1", "text": "Another text."},
        {"id": "9", "text": "The harbour burned."},
        {"id": "4", "text": "New."},
    )
    (records / "c.jsonl").write_bytes(lines(*again) + b"not json\n")
    # More than is read at once, or the damage would be found before the first record.
    damaged = lines({"id": "5", "text": "Five."}, {"id": "6", "text": "Six."}, {"id": "7", "other": "x" * 1_200_000})
    (records / "d.jsonl.gz").write_bytes(gzip.compress(damaged)[:-8])
    (folder / "docs" / "a.md").write_text("# Harbour\n\nBuilt in 1871.\n\nThe harbour burned.\n")
    (folder / "docs" / "blank.txt").write_text("---")
    (folder / "docs" / "deep" / "b.txt").write_text("Nobody was hurt.\n")


def lines(*records: dict[str, str]) -> bytes:
    """Records as jsonl."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def maker(folder: Path, output: str, said: list[str] | None = None, **settings: object) -> CorpusMaker:
    """Of records between documents."""
    places = tuple(f"{folder}/{name}" for name in ("docs/a.md", "records", "docs"))
    config = CorpusConfig(**{"sources": places, "output": output, "max_tokens": 16, **settings})  # type: ignore[arg-type]
    return CorpusMaker(config, None, [].append if said is None else said.append)


def contents(output: str) -> dict[str, bytes]:
    """The files of a corpus."""
    return {name: Storage(output).read(name) for name in (CARD, PASSAGES, SOURCES, REJECTED)}


def small_parts(set_to: Callable[[object, str, object], None] = setattr) -> None:
    """From now on each record, and each document, is a part; and no disk is waited for, as none loses power."""
    set_to(corpus_parts, "_MOST_SECONDS", -1.0)
    set_to(os, "fsync", lambda file: None)


def _killed(sources: Path, output: str, line: int) -> int:
    """The wait status of a process that makes the corpus until this line."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    traced((*TRACED, "regrad/locking.py"), line)
    maker(sources, output).run()
    os._exit(0)


if __name__ == "__main__":
    small_parts()
    for each in sys.argv[3:]:
        print(_killed(Path(sys.argv[1]), f"{sys.argv[2]}-{each}", int(each)))
