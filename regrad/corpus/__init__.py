"""Passages and how they are read: from jsonl, tsv and Parquet, plain or compressed, one file or many, on any URI."""

from regrad.corpus.files import CorpusFile, corpus_files
from regrad.corpus.lines import MAX_LINE_BYTES
from regrad.corpus.passage import Passage, encode_passages, parse_passage
from regrad.corpus.reading import read_passages, read_raw, read_records
from regrad.corpus.records import RawRecord, shown

__all__ = [
    "MAX_LINE_BYTES",
    "CorpusFile",
    "Passage",
    "RawRecord",
    "corpus_files",
    "encode_passages",
    "parse_passage",
    "read_passages",
    "read_raw",
    "read_records",
    "shown",
]
