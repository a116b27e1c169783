"""What can be set of an index and of searching it."""

from __future__ import annotations

from pydantic import Field

from regrad.settings import Location, Settings


class IndexConfig(Settings):
    """`regrad index`: a Lucene BM25 index of a corpus."""

    corpus: Location
    output: Location
    threads: int = Field(2, ge=1)


class RetrieverConfig(Settings):
    """BM25's parameters, as pyserini's defaults."""

    k1: float = Field(0.9, ge=0)
    b: float = Field(0.4, ge=0, le=1)
