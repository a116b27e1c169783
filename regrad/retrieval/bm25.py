"""BM25 with Lucene (pyserini): building an index and searching it. Java runs elsewhere, see `lucene_process.py`.

An index may be made of shards, each with the words of some of its passages, which were built by themselves. They are
searched as one: words are as rare, and texts as long, as they are in all of them, so the scores are those of one index.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval.base import CARD, IndexCard, JoinedHit, JoinedSearch, Retriever, write_card
from regrad.retrieval.config import Bm25SearchConfig, IndexField, Language, RetrieverConfig
from regrad.retrieval.index_files import IndexFile, index_file, local_index
from regrad.retrieval.lucene_process import lucene
from regrad.retrieval.passage_store import PassageStore, store_passages
from regrad.storage import Storage, directory_writer

if TYPE_CHECKING:
    from regrad.retrieval.embedding import Embedding

_FOLDER, _SHARD_CARD = "lucene", "shard.json"
_BATCH = 1000
_MAX_WORDS = 512


def build_index(
    passages: Iterable[Passage],
    uri: str,
    threads: int = 2,
    fields: tuple[IndexField, ...] = ("contents", "title"),
    language: Language = "en",
) -> int:
    """Index these fields of every passage at `uri`, whole or not at all; returns how many passages there were.

    Raises `RetrievalError` if there are none, an id occurs twice or Lucene fails.
    """
    with directory_writer(uri, CARD) as folder:
        count = _index(store_passages(passages, folder), str(folder / "lucene"), threads, fields, language)
        if not count:
            raise RetrievalError("the corpus is empty: there is nothing to index", code="empty_corpus")
        write_card(folder, "bm25", count, fields, language=language)
    return count


@dataclass(frozen=True)
class Shard:
    """The passages from place `start` to `stop` of a corpus. The name is a hash of them, fields and language."""

    start: int
    stop: int
    name: str


def build_shard(
    passages: Iterable[Passage],
    shard: Shard,
    uri: str,
    threads: int,
    fields: Sequence[IndexField],
    language: Language = "en",
) -> str:
    """Index a shard's passages below `uri`, whole or not at all, unless that was done before; returns its address.

    `passages` are those of the whole corpus. Raises `RetrievalError` if they are not what the shard was named by.
    """
    place = f"{uri}/{shard.name}"
    if Storage(place).exists(_SHARD_CARD):
        return place
    named = _ShardName(fields, language)
    with directory_writer(place, _SHARD_CARD) as folder:
        stream = named.watch(islice(passages, shard.start, shard.stop))
        batches = iter(lambda: list(islice(stream, _BATCH)), [])
        count = _index(batches, f"{folder}/lucene", threads, fields, language)
        if named.name() != shard.name:
            raise RetrievalError("the corpus changed while it was indexed; run again", code="corpus_changed")
        files = {path.relative_to(folder).as_posix(): index_file(path).model_dump() for path in folder.glob("lucene/*")}
        (folder / _SHARD_CARD).write_text(json.dumps({"passages": count, "files": files}) + "\n")
    return place


def build_sharded_index(
    passages: Iterable[Passage],
    uri: str,
    shards: int,
    build: Callable[[Sequence[Shard]], Sequence[str]],
    fields: tuple[IndexField, ...] = ("contents", "title"),
    language: Language = "en",
) -> int:
    """Index every passage at `uri`, whole or not at all, in that many shards; returns how many passages there were.

    `build` is called with the shards once all passages were read and their ids found to be unique, and returns the
    addresses that `build_shard` gave, in order. Raises `RetrievalError` if there are no passages or an id occurs twice.
    """
    with directory_writer(uri, CARD) as folder:
        count = sum(len(batch) for batch in store_passages(passages, folder))
        if not count:
            raise RetrievalError("the corpus is empty: there is nothing to index", code="empty_corpus")
        for number, place in enumerate(build(_shards(folder, count, min(shards, count), fields, language))):
            files = json.loads(Storage(place).read(_SHARD_CARD)).get("files", {})
            source = local_index(place, {name: IndexFile.model_validate(file) for name, file in files.items()})
            copytree(source / "lucene", folder / f"{_FOLDER}-{number:04d}")
        write_card(folder, "bm25", count, fields, language=language)
    return count


def _shards(folder: Path, count: int, shards: int, fields: Sequence[IndexField], language: str) -> list[Shard]:
    """Of nearly the same number of passages each, one after the other, so that equal scores stay in corpus order."""
    store = PassageStore(folder)
    stream = (passage for block in store.blocks(_BATCH) for passage in block)
    found = []
    for number in range(shards):
        start, stop = count * number // shards, count * (number + 1) // shards
        named = _ShardName(fields, language)
        deque(named.watch(islice(stream, stop - start)), maxlen=0)
        found.append(Shard(start, stop, named.name()))
    store.close()
    return found


class _ShardName:
    """The name of a shard, from the passages that pass by."""

    def __init__(self, fields: Sequence[IndexField], language: str) -> None:
        self._digest = hashlib.sha256(repr([*fields, language]).encode())

    def watch(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        for passage in passages:
            self._digest.update(passage.digest)
            yield passage

    def name(self) -> str:
        return self._digest.hexdigest()[:32]


def _index(
    batches: Iterable[Sequence[Passage]], folder: str, threads: int, fields: Sequence[IndexField], language: str
) -> int:
    count, process = 0, lucene()
    with process.alone():
        try:
            process.ask("begin", folder=folder, threads=threads, fields=fields, language=language)
            for batch in batches:
                process.ask("add", documents=[_document(passage, fields) for passage in batch])
                count += len(batch)
            process.ask("finish", folder=folder, count=count)
        except BaseException:
            process.stop()  # with it goes the index that was begun
            raise
    return count


def _document(passage: Passage, fields: Sequence[IndexField]) -> str:
    texts = {"contents": f"{passage.title}\n{passage.text}", "title": passage.title, "text": passage.text}
    return json.dumps({"id": passage.id, **{field: texts[field] for field in fields}})


class OpenIndex:
    """An index, or several as one, open in Lucene's process; opened again when that process was restarted.

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
        names = {name.partition("/")[0] for name in card.files}
        self.lucene_folders = [str(folder / name) for name in sorted(names) if name.partition("-")[0] == _FOLDER]
        self._settings = settings.bm25
        self._weights = settings.bm25.weights
        self.language = card.language or "en"
        if len(self.lucene_folders) > 1:
            self._shards: _LuceneJoined | None = _LuceneJoined([self.lucene_folders], self._settings, self.language)
            return
        self._shards = None
        k1, b = self._settings.k1, self._settings.b
        self._index = OpenIndex("open", folder=self.lucene_folders[0], k1=k1, b=b, language=self.language)

    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """Ties are in the order of their ids, as text; in an index of several shards, in the corpus's."""
        if self._shards:
            return [
                [(passage_id, score) for _, passage_id, score in hits] for hits in self._shards.ranked(questions, k)
            ]
        settings = self._settings
        asked: dict[str, Any] = {"questions": [bounded(one) for one in questions], "k": k, "weights": self._weights}
        if settings.combine == "best":
            found = self._index.ask("search_best", tie=settings.tie, **asked)
        else:
            found = self._index.ask("search", **asked)
        return [[(passage_id, score) for passage_id, score in hits] for hits in found]

    def build_like(self, passages: Iterable[Passage], uri: str, embedding: Embedding | None = None) -> int:
        """With the same fields and language."""
        same: dict[str, Any] = {"fields": self.card.fields, "language": self.language}
        return build_index(passages, uri, **same)

    def joined(self, others: Sequence[Self]) -> JoinedSearch:
        """With the words' and texts' statistics of all of them; raises `RetrievalError` if languages differ."""
        languages = sorted({one.language for one in (self, *others)})
        if len(languages) > 1:
            raise RetrievalError(
                f"indexes of different languages cannot be searched as one: there are {', '.join(languages)}; make "
                "them again with one `language`",
                code="other_language",
                found=languages,
            )
        return _LuceneJoined([one.lucene_folders for one in (self, *others)], self._settings, self.language)

    def close(self) -> None:
        """Release the index and the store."""
        super().close()
        (self._shards or self._index).close()


class _LuceneJoined(JoinedSearch):
    """Indexes as one, each of one folder of Lucene's or, in shards, of several."""

    def __init__(self, indexes: Sequence[Sequence[str]], settings: Bm25SearchConfig, language: str) -> None:
        self._settings = settings
        folders = [folder for folders in indexes for folder in folders]
        self._index_of = [number for number, folders in enumerate(indexes) for _ in folders]
        opening = {"folders": folders, "k1": settings.k1, "b": settings.b, "language": language}
        self._index = OpenIndex("open_together", **opening)

    def ranked(self, questions: Sequence[str], k: int) -> list[list[JoinedHit]]:
        """See `JoinedSearch`."""
        asked = [bounded(one) for one in questions]
        tie = self._settings.tie if self._settings.combine == "best" else None
        found = self._index.ask("search_together", questions=asked, k=k, weights=self._settings.weights, tie=tie)
        return [[(self._index_of[place], passage_id, score) for place, passage_id, score in hits] for hits in found]

    def close(self) -> None:
        """See `JoinedSearch`."""
        self._index.close()


def bounded(question: str) -> str:
    """Each word costs time: of a very long question only the first distinct words count."""
    words = list(dict.fromkeys(re.findall(r"\w+", question)))
    return question if len(words) <= _MAX_WORDS else " ".join(words[:_MAX_WORDS])
