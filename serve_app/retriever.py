"""Deployment: Lucene BM25 search."""

from __future__ import annotations

import time
from collections.abc import Sequence

from regrad.errors import RegradError
from regrad.retrieval.base import Hit
from regrad.retrieval.bm25 import LuceneRetriever
from serve_app.config import ServeConfig
from serve_app.messages import Ask, Retrieved, RoutedAsk
from serve_app.observability.tracing import Watch


class RetrieverDeployment:
    """Searches the index; one JVM a replica."""

    def __init__(self, config: ServeConfig) -> None:
        self._retriever = LuceneRetriever(config.index, config.retrieval)
        self._watch = Watch(config.watching, "retriever")

    def check_health(self) -> None:
        """Raises if Lucene does not answer, so that Serve replaces the replica."""
        self._retriever.search("health", 1)

    def retrieve(self, routed: Sequence[RoutedAsk]) -> list[Retrieved | Exception | None]:
        """For each request its passages, or why there are none; None where the method looks at none."""
        return [self._one(each.ask) if each.retrieves else None for each in routed]

    def _one(self, ask: Ask) -> Retrieved | Exception:
        """The k best passages, or those that the caller named, in the caller's order."""
        started = time.perf_counter()
        named = ask.passage_ids
        try:
            with self._watch.span("retrieve", ask.traceparent, k=ask.k if named is None else len(named)):
                if named is None:
                    hits = tuple(self._retriever.search(ask.question, ask.k))
                else:
                    hits = tuple(Hit(passage, 0.0) for passage in self._retriever.get(list(named)))
        except RegradError as error:
            return error
        return Retrieved(hits, (time.perf_counter() - started) * 1e3)
