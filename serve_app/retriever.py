"""Deployment: searching the index."""

from __future__ import annotations

import time
from collections.abc import Sequence

from regrad.errors import RegradError
from regrad.retrieval.base import Hit, open_retriever
from serve_app.config import ServeConfig
from serve_app.messages import Ask, Retrieved, RoutedAsk
from serve_app.observability import Watch


class RetrieverDeployment:
    """Searches an index of any kind; for BM25 each replica has a JVM."""

    def __init__(self, config: ServeConfig) -> None:
        self._retriever = open_retriever(config.index, config.retrieval)
        self._watch = Watch(config.watching, "retriever")

    def check_health(self) -> None:
        """Raises if the index does not answer, so that Serve replaces the replica."""
        self._retriever.search(["health"], 1)

    def retrieve(self, routed: Sequence[RoutedAsk]) -> list[Retrieved | Exception | None]:
        """For each request its passages, or why there are none; None where the method looks at none."""
        return [self._retrieve_one(each.ask) if each.retrieves else None for each in routed]

    def _retrieve_one(self, ask: Ask) -> Retrieved | Exception:
        """The k best passages, or those that the caller named, in the caller's order."""
        # Errors are values here: those of one request must not fail the others of its micro-batch.
        started = time.perf_counter()
        named = ask.passage_ids
        try:
            with self._watch.span("retrieve", ask.traceparent, k=ask.k if named is None else len(named)):
                if named is None:
                    (hits,) = self._retriever.search([ask.question], ask.k)
                else:
                    hits = [Hit(passage, 0.0) for passage in self._retriever.passages(named)]
        except RegradError as error:
            return error
        return Retrieved(tuple(hits), (time.perf_counter() - started) * 1e3)
