"""BM25 with Lucene (pyserini): building an index and searching it. Java runs elsewhere, see `lucene_process.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval.base import CARD, IndexCard, JoinedHit, JoinedSearch, Retriever, write_card
from regrad.retrieval.config import Bm25SearchConfig, IndexField, RetrieverConfig
from regrad.retrieval.lucene_process import lucene
from regrad.retrieval.passage_store import store_passages
from regrad.storage import directory_writer

_MAX_WORDS = 512


def build_index(
    passages: Iterable[Passage], uri: str, threads: int = 2, fields: tuple[IndexField, ...] = ("contents", "title")
) -> int:
    """Index these fields of every passage at `uri`, whole or not at all; returns how many passages there were.

    Raises `RetrievalError` if there are none, an id occurs twice or Lucene fails.
    """
    with directory_writer(uri, CARD) as folder:
        count = _index(store_passages(passages, folder), str(folder / "lucene"), threads, fields)
        if not count:
            raise RetrievalError("the corpus is empty: there is nothing to index", code="empty_corpus")
        write_card(folder, "bm25", count, fields)
    return count


def _index(batches: Iterable[Sequence[Passage]], folder: str, threads: int, fields: tuple[IndexField, ...]) -> int:
    count, process = 0, lucene()
    with process.alone():
        try:
            process.ask("begin", folder=folder, threads=threads, fields=fields)
            for batch in batches:
                process.ask("add", documents=[_document(passage, fields) for passage in batch])
                count += len(batch)
            process.ask("finish", folder=folder, count=count)
        except BaseException:
            process.stop()  # with it goes the index that was begun
            raise
    return count


def _document(passage: Passage, fields: tuple[IndexField, ...]) -> str:
    texts = {"contents": f"{passage.title}\n{passage.text}", "title": passage.title, "text": passage.text}
    return json.dumps({"id": passage.id, **{field: texts[field] for field in fields}})


class _OpenIndex:
    """An index, or several as one, open in Lucene's process; opened again when that process was started anew.

    After `close` it is opened for each question and closed again: what is asked late leaves nothing in that process.
    """

    def __init__(self, do: str, **arguments: Any) -> None:
        self._do = do
        self._closed = False
        self._arguments = {"name": uuid4().hex, **arguments}
        self._open()

    def ask(self, do: str, **asked: Any) -> Any:
        """Searching changes nothing, so a process that ended meanwhile is asked again, once."""
        try:
            return self._ask(do, asked)
        except RetrievalError as error:
            if error.code != "retrieval.lucene_ended":
                raise
        return self._ask(do, asked)

    def close(self) -> None:
        """Release it."""
        with lucene().alone():  # else a question could open it again just after this
            self._closed = True
            self._release()

    def _open(self) -> None:
        lucene().ask(self._do, **self._arguments)

    def _release(self) -> None:
        if lucene().pid is not None:  # else there is nothing to release, and asking would start it
            with suppress(RetrievalError):  # it ended meanwhile
                lucene().ask("close", name=self._arguments["name"])

    def _ask(self, do: str, asked: dict[str, Any]) -> Any:
        with lucene().alone():
            if not lucene().ask("is_open", name=self._arguments["name"]):
                self._open()
            try:
                return lucene().ask(do, name=self._arguments["name"], **asked)
            finally:
                if self._closed:
                    self._release()


class LuceneRetriever(Retriever):
    """BM25 search over an index made by `build_index`. Safe to use from many threads; one call runs at a time."""

    def __init__(self, folder: Path, card: IndexCard, settings: RetrieverConfig) -> None:
        super().__init__(folder, card, settings)
        if missing := [field for field in settings.bm25.weights if field not in card.fields]:
            raise RetrievalError(
                f"the index has the fields {', '.join(card.fields)}, but not {', '.join(missing)}, which the settings "
                "search: set its weight to 0, or make the index again with `fields`",
                code="no_field",
                missing=missing,
                fields=list(card.fields),
            )
        self.lucene_folder = str(folder / "lucene")
        self._settings = settings.bm25
        k1, b = self._settings.k1, self._settings.b
        self._index = _OpenIndex("open", folder=self.lucene_folder, k1=k1, b=b)

    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """Ties are in Lucene's document order."""
        settings = self._settings
        asked: dict[str, Any] = {"questions": [_bounded(one) for one in questions], "k": k, "weights": settings.weights}
        if settings.combine == "best":
            found = self._index.ask("search_best", tie=settings.tie, **asked)
        else:
            found = self._index.ask("search", **asked)
        return [[(passage_id, score) for passage_id, score in hits] for hits in found]

    def build_like(self, passages: Iterable[Passage], uri: str) -> int:
        """With the same fields."""
        return build_index(passages, uri, fields=self.card.fields)  # type: ignore[arg-type]  # it names no others

    def joined(self, others: Sequence[Self]) -> JoinedSearch:
        """With the words' and texts' statistics of all of them."""
        return _LuceneJoined([self.lucene_folder, *(other.lucene_folder for other in others)], self._settings)

    def close(self) -> None:
        """Release the index and the store."""
        super().close()
        self._index.close()


class _LuceneJoined(JoinedSearch):
    def __init__(self, folders: Sequence[str], settings: Bm25SearchConfig) -> None:
        self._settings = settings
        self._index = _OpenIndex("open_together", folders=list(folders), k1=settings.k1, b=settings.b)

    def ranked(self, questions: Sequence[str], k: int) -> list[list[JoinedHit]]:
        """See `JoinedSearch`."""
        asked = [_bounded(one) for one in questions]
        tie = self._settings.tie if self._settings.combine == "best" else None
        found = self._index.ask("search_together", questions=asked, k=k, weights=self._settings.weights, tie=tie)
        return [[(index, passage_id, score) for index, passage_id, score in hits] for hits in found]

    def close(self) -> None:
        """See `JoinedSearch`."""
        self._index.close()


def _bounded(question: str) -> str:
    """Each word costs time: of a very long question only the first distinct words count."""
    words = list(dict.fromkeys(re.findall(r"\w+", question)))
    return question if len(words) <= _MAX_WORDS else " ".join(words[:_MAX_WORDS])
