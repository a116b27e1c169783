"""Deployment: Lucene BM25 search."""

from __future__ import annotations

import time

from regrad.config import ServeConfig
from regrad.retrieval.lucene import LuceneRetriever
from regrad.retrieval.protocol import Hit
from serve_app.messages import Retrieved


class RetrieverDeployment:
    """Searches the index; one JVM a replica."""

    def __init__(self, config: ServeConfig) -> None:
        self._retriever = LuceneRetriever(config.index, config.retrieval)

    def search(self, question: str, k: int) -> Retrieved:
        """The k best passages."""
        started = time.perf_counter()
        hits = tuple(self._retriever.search(question, k))
        return Retrieved(hits, (time.perf_counter() - started) * 1e3)

    def look_up(self, passage_ids: list[str]) -> Retrieved:
        """The passages that the caller named, in the caller's order; raises `PassageNotFound`."""
        started = time.perf_counter()
        hits = tuple(Hit(passage, 0.0) for passage in self._retriever.get(passage_ids))
        return Retrieved(hits, (time.perf_counter() - started) * 1e3)
