"""BM25 with Lucene through pyserini: build an index directory, search it, look passages up by id."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from regrad.config import RetrieverConfig
from regrad.corpus import Passage
from regrad.errors import PassageNotFound, RetrievalError
from regrad.retrieval.java import start_java
from regrad.retrieval.protocol import Hit
from regrad.storage import directory_writer, local_directory

CARD = "regrad-index.json"
_BATCH = 1000


def build_index(passages: Iterable[Passage], uri: str, threads: int = 2) -> int:
    """Index title and text of every passage at `uri`, whole or not at all; returns how many there were.

    Raises `RetrievalError` if there are none, an id occurs twice or Lucene fails.
    """
    with directory_writer(uri) as folder:
        lucene = folder / "lucene"
        count = _index(passages, lucene, threads)
        if not count:
            raise RetrievalError("the corpus is empty: there is nothing to index")
        _check_complete(lucene, count)
        (folder / CARD).write_text(json.dumps({"format": 1, "passages": count}) + "\n")
    return count


def _index(passages: Iterable[Passage], folder: Path, threads: int) -> int:
    start_java()
    from jnius import JavaException
    from pyserini.index.lucene import LuceneIndexer

    indexer = LuceneIndexer(args=["-index", str(folder), "-storeRaw"], threads=threads)
    seen: set[str] = set()
    try:
        stream = iter(passages)
        while batch := list(islice(stream, _BATCH)):
            for passage in batch:
                if passage.id in seen:
                    raise RetrievalError(f"passage id {passage.id!r} occurs more than once in the corpus")
                seen.add(passage.id)
            indexer.add_batch_raw([_document(passage) for passage in batch])
        indexer.close()
    except JavaException as error:
        raise RetrievalError(f"Lucene could not write the index: {error}") from error
    return len(seen)


def _check_complete(folder: Path, count: int) -> None:
    """Lucene reports some failures (a full disk) only in its log: count what the index holds."""
    from jnius import JavaException
    from pyserini.search.lucene import LuceneSearcher

    try:
        found = LuceneSearcher(str(folder)).num_docs
    except JavaException as error:
        raise RetrievalError(f"Lucene wrote an index that cannot be read (is the disk full?): {error}") from error
    if found != count:
        raise RetrievalError(f"the index holds {found} of {count} passages (is the disk full?)")


def _document(passage: Passage) -> str:
    contents = f"{passage.title}\n{passage.text}"
    return json.dumps({"id": passage.id, "contents": contents, "title": passage.title, "text": passage.text})


class LuceneRetriever:
    """BM25 search over an index made by `build_index`; raises `RetrievalError` if there is none at `uri`."""

    def __init__(self, uri: str, config: RetrieverConfig = RetrieverConfig()) -> None:
        folder = local_directory(uri)
        if not (folder / CARD).exists():
            raise RetrievalError(f"there is no index at {uri}: {CARD} is missing; make one with `regrad index`")
        start_java()
        logging.getLogger("pyserini").setLevel(logging.WARNING)
        from pyserini.search.lucene import LuceneSearcher

        self._searcher: Any = LuceneSearcher(str(folder / "lucene"))
        self._searcher.set_bm25(config.k1, config.b)
        self._lock = threading.Lock()  # objects shared through jnius break when two threads use them at once

    def search(self, question: str, k: int) -> list[Hit]:
        """The k best passages, best first (ties by Lucene's document order)."""
        with self._lock:
            hits = self._searcher.search(question, k)
            found = [(str(hit.lucene_document.get("raw")), float(hit.score)) for hit in hits]
        return [Hit(_passage(raw), score) for raw, score in found]

    def get(self, passage_ids: Sequence[str]) -> list[Passage]:
        """Passages by id, in order; raises `PassageNotFound` naming an unknown one."""
        return [self._get(passage_id) for passage_id in passage_ids]

    def _get(self, passage_id: str) -> Passage:
        with self._lock:
            document = self._searcher.doc(passage_id)
            raw = document.raw() if document is not None else None
        if raw is None:
            raise PassageNotFound(f"the index has no passage {passage_id!r:.80}")
        return _passage(raw)


def _passage(raw: str) -> Passage:
    record = json.loads(raw)
    return Passage(record["id"], record["title"], record["text"])
