"""Reading a corpus: record by record with what is wrong, or as passages up to the first bad one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from regrad.corpus.files import PARQUET, TSV, corpus_files, file_format
from regrad.corpus.lines import TOO_LONG, each_line
from regrad.corpus.parquet import read_parquet
from regrad.corpus.passage import Passage, decode
from regrad.corpus.records import RawRecord, shown
from regrad.corpus.tsv import TsvReader
from regrad.errors import CorpusError


def read_passages(uri: str) -> Iterator[Passage]:
    """All passages of a corpus, in order; raises `CorpusError` for the first bad one, or if there is none."""
    empty = True
    for file in corpus_files(uri):
        for record in read_raw(file.uri):
            empty = False
            yield record.passage()
    if empty:
        raise CorpusError(f"{uri}: the corpus is empty")


def read_raw(uri: str) -> Iterator[RawRecord]:
    """The records of one file in order, good and bad, streamed; raises `CorpusError` if the file cannot be read."""
    kind = file_format(uri)
    if kind == PARQUET:
        return read_parquet(uri)
    return iter(TsvReader(uri, each_line(uri))) if kind == TSV else _jsonl(uri)


def read_records(uri: str) -> Iterator[tuple[int, Any]]:
    """(line number, decoded JSON) of every non-empty line of a jsonl file; raises `CorpusError` naming a bad line."""
    for record in _jsonl(uri):
        if record.problem:
            raise CorpusError(f"{record.where}: {record.problem}")
        yield record.number, decode(record.line, record.where)


def _jsonl(uri: str) -> Iterator[RawRecord]:
    number = skipped = 0
    for line, read_bytes, cut in each_line(uri):
        number += 1
        if cut:
            yield RawRecord(uri, number, shown(line).encode(), skipped + read_bytes, TOO_LONG)
        elif line and not line.isspace():
            yield RawRecord(uri, number, line, skipped + read_bytes)
        else:
            skipped += read_bytes
            continue
        skipped = 0
