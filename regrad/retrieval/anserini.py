"""Lucene indexes that Anserini's own indexer made, pyserini's prebuilt ones above all: searched as they are, by BM25.

They have no card and no passage store: their directory, or a name that pyserini knows them by, is all there is. What
can be searched is the field `contents`, with Anserini's English analyser; texts come from what Lucene keeps of a
document, `raw` or `contents`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from regrad.data.field_names import split_contents
from regrad.data.passages import Passage
from regrad.errors import JavaNotFound, PassageNotFound, RetrievalError
from regrad.retrieval.base import IndexCard, Retriever
from regrad.retrieval.bm25 import OpenIndex, bounded
from regrad.retrieval.config import Bm25SearchConfig, RetrieverConfig
from regrad.retrieval.index_files import index_file
from regrad.retrieval.lucene_process import lucene
from regrad.retrieval.passage_store import is_text
from regrad.storage import Storage, local_directory

KIND = "anserini"
_FIELD = "contents"
_NAME = re.compile(r"[a-z0-9]+-[A-Za-z0-9._-]+")  # all but `cacm`: what cannot be one starts no Java
_ARCHIVES = (".tar.gz", ".tgz")


def located(uri: str) -> str:
    """The directory of the prebuilt index that pyserini knows by this name; any other address as it is.

    Raises `RetrievalError` if pyserini has not fetched that index, and for an archive.
    """
    if uri.endswith(_ARCHIVES):
        text = f"{uri} is an archive: unpack it (`tar xzf`), and name the directory that has its files"
        raise RetrievalError(text, code="packed", uri=uri)
    name = uri.rpartition("/")[2]  # settings have made a path of it, from the directory that they were read in
    if "://" in uri or not _NAME.fullmatch(name) or Path(uri).exists():
        return uri
    entry = None
    with suppress(JavaNotFound):  # then it is a mistyped directory, for one who has no lexical index
        entry = lucene().ask("prebuilt", name=name)
    if entry is None:
        return uri
    cache = Path(os.environ.get("PYSERINI_CACHE") or Path.home() / ".cache" / "pyserini") / "indexes"
    place = cache / f"{entry['filename'].removesuffix('.tar.gz')}.{entry['md5']}"
    if not place.is_dir():
        raise RetrievalError(
            f"pyserini has not fetched its index {name}: {place} does not exist; fetch it with "
            f"`python -c \"from pyserini.search.lucene import LuceneSearcher as S; S.from_prebuilt_index('{name}')\"`, "
            f"or unpack {entry['filename']} anywhere and name that directory",
            code="not_fetched",
            name=name,
            expected=str(place),
        )
    return str(place)


def anserini_card(uri: str) -> IndexCard | None:
    """A card for the Lucene index in this directory, which has none; None if there is no such index.

    It names the one file that says which others are in force and has an id of its own. One in an object store is
    fetched to be counted. Raises `RetrievalError` if Lucene cannot read it, or it has no words to search.
    """
    commits = [name for name in Storage(uri).list() if name.startswith("segments_")]
    if not commits:
        return None
    folder = local_directory(uri)
    newest = folder / max(commits, key=lambda name: int(name.removeprefix("segments_"), 36))
    file = index_file(newest)
    documents, fields = _described(str(folder), file.sha256)
    if _FIELD not in fields:
        raise RetrievalError(
            f"the Lucene index at {uri} has no field {_FIELD!r}, only {', '.join(fields) or 'vectors'}: it is no "
            "lexical index of Anserini's",
            code="no_field",
            missing=[_FIELD],
            fields=list(fields),
        )
    return IndexCard(kind=KIND, passages=documents, fields=(_FIELD,), joins=("bm25",), files={newest.name: file})


@lru_cache(maxsize=64)
def _described(folder: str, commit: str) -> tuple[int, tuple[str, ...]]:
    """Documents and fields; for one commit they never change, and a card is read more than once to open an index."""
    found = lucene().ask("describe", folder=folder)
    return int(found["documents"]), tuple(found["fields"])


class AnseriniRetriever(Retriever):
    """BM25 over an index of Anserini's, whose texts are what Lucene keeps. Safe to use from many threads."""

    HAS_STORE = False

    @classmethod
    def located(cls, uri: str) -> str:
        """See `Retriever` and the function `located`."""
        return located(uri)

    @classmethod
    def card_without_file(cls, uri: str) -> IndexCard | None:
        """See `Retriever`."""
        return anserini_card(uri)

    @classmethod
    def check_content(cls, uri: str, card: IndexCard) -> int:
        """See `Retriever`: there is nothing to compare with."""
        raise RetrievalError(
            f"{uri} has no checksums: Anserini made it; compare its archive with pyserini's MD5",
            code="no_checksums",
            uri=uri,
        )

    def __init__(self, folder: Path, card: IndexCard, settings: RetrieverConfig) -> None:
        self.card = card
        self._folder = folder
        self._weights = {_FIELD: _weight(settings.bm25)}
        self._index = OpenIndex("open", folder=str(folder), k1=settings.bm25.k1, b=settings.bm25.b)

    @classmethod
    def open(cls, uri: str, card: IndexCard, settings: RetrieverConfig) -> Retriever:
        """Over the copy that its card was made of."""
        return cls(local_directory(uri), card, settings)

    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """Ties are in the order of their ids, as text."""
        asked = [bounded(question) for question in questions]
        found = self._index.ask("search", questions=asked, k=k, weights=self._weights)
        return [[(passage_id, score) for passage_id, score in hits] for hits in found]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """See `Retriever`; raises `RetrievalError` if the index was made without `-storeRaw` and `-storeContents`."""
        found = self._stored(ids)
        for passage_id in ids:
            if passage_id not in found:
                raise PassageNotFound(f"the index has no passage {passage_id!r:.80}", passage_id=passage_id)
            if not found[passage_id]:
                raise RetrievalError(
                    f"the Lucene index at {self._folder} keeps no texts: take one that was made with -storeRaw (of "
                    "pyserini's, one whose name does not end in `-slim`)",
                    code="no_texts",
                    passage_id=passage_id,
                )
        return [_passage(passage_id, found[passage_id]) for passage_id in ids]

    def known(self, ids: Sequence[str]) -> set[str]:
        """See `Retriever`."""
        return set(self._stored(ids))

    def close(self) -> None:
        """See `Retriever`."""
        self._index.close()

    def _stored(self, ids: Iterable[str]) -> dict[str, dict[str, str]]:
        wanted = [passage_id for passage_id in dict.fromkeys(ids) if is_text(passage_id)]
        kept = self._index.ask("stored", ids=wanted)
        return {passage_id: one for passage_id, one in zip(wanted, kept, strict=True) if one is not None}


def _weight(settings: Bm25SearchConfig) -> float:
    """What `contents` counts; the default weight of a title, which this index does not have, counts nothing."""
    plain = Bm25SearchConfig()
    missing = [name for name in ("title", "text") if getattr(settings, name) not in (0, getattr(plain, name))]
    if missing or not settings.contents:
        raise RetrievalError(
            f"a Lucene index of Anserini's has the field {_FIELD} alone, and the settings search "
            f"{', '.join(missing or ['no contents'])}: give `contents` a weight, and no other",
            code="no_field",
            missing=missing,
            fields=[_FIELD],
        )
    return settings.contents


def _passage(passage_id: str, kept: dict[str, str]) -> Passage:
    """Of `raw`, the record as it was indexed, or of `contents`."""
    record: Any = None
    if "raw" in kept:
        try:
            record = json.loads(kept["raw"])
        except ValueError:
            record = None  # a collection that is not of JSON, such as TREC's
    if not isinstance(record, dict):
        title, text = split_contents(kept.get("raw", kept.get(_FIELD, "")))
        return Passage(passage_id, title, text)
    title, text = split_contents(str(record.get("text") or record.get(_FIELD) or ""))
    return Passage(passage_id, str(record.get("title") or title), text)
