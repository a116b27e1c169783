"""Deployment: searching the index."""

from __future__ import annotations

import time

from regrad.errors import RegradError
from regrad.retrieval.base import Hit, open_retriever
from serve_app.config import ServeConfig
from serve_app.messages import Retrieved, SearchRequest
from serve_app.observability.tracing import Watch


class RetrieverDeployment:
    """Searches the index, whatever kind it is; for BM25 there is one JVM a replica."""

    def __init__(self, config: ServeConfig) -> None:
        self._retriever = open_retriever(config.index, config.retrieval)
        self._watch = Watch(config.watching, "retriever")

    def check_health(self) -> None:
        """Raises if the index does not answer, so that Serve replaces the replica."""
        self._retriever.search(["health"], 1)

    def many(self, requests: list[SearchRequest | None]) -> list[Retrieved | Exception | None]:
        """For each request its passages, or why there are none."""
        return [None if request is None else self._one(request) for request in requests]

    def _one(self, request: SearchRequest) -> Retrieved | Exception:
        try:
            if request.passage_ids is not None:
                return self.look_up(list(request.passage_ids), request.traceparent)
            return self.search(request.question, request.k, request.traceparent)
        except RegradError as error:
            return error

    def search(self, question: str, k: int, traceparent: str = "") -> Retrieved:
        """The k best passages."""
        started = time.perf_counter()
        with self._watch.span("retrieve", traceparent, k=k):
            hits = tuple(self._retriever.search([question], k)[0])
        return Retrieved(hits, (time.perf_counter() - started) * 1e3)

    def look_up(self, passage_ids: list[str], traceparent: str = "") -> Retrieved:
        """The passages that the caller named, in the caller's order; raises `PassageNotFound`."""
        started = time.perf_counter()
        with self._watch.span("retrieve", traceparent, k=len(passage_ids)):
            hits = tuple(Hit(passage, 0.0) for passage in self._retriever.passages(passage_ids))
        return Retrieved(hits, (time.perf_counter() - started) * 1e3)
