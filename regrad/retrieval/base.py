"""What a retriever is, and opening one: the card of an index says which class searches it."""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import ValidationError

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.registry import Registry
from regrad.retrieval.config import RetrieverConfig
from regrad.retrieval.hits import Hit, SourcedHit
from regrad.retrieval.index_files import IndexFile, check_content, index_file, local_index
from regrad.retrieval.passage_store import PassageStore
from regrad.settings import Settings
from regrad.storage import Storage

if TYPE_CHECKING:
    from regrad.retrieval.embedding import Embedding

CARD = "regrad-index.json"
FORMAT = 3

RETRIEVERS: Registry[str] = Registry(
    "kind of index",
    RetrievalError,
    {
        "bm25": "regrad.retrieval.bm25:LuceneRetriever",
        "dense": "regrad.retrieval.dense:DenseRetriever",
        "fused": "regrad.retrieval.fused:FusedRetriever",
        "reranked": "regrad.retrieval.reranked:RerankedRetriever",
        "collection": "regrad.retrieval.collection:CollectionRetriever",
        "anserini": "regrad.retrieval.anserini:AnseriniRetriever",
    },
)
"""The class of each kind of index, as `module:class`: it is asked what holds of the kind (`kind_of`), and opens it.

Its module is imported for a card alone, too: what only searching needs (a model, a JVM) is imported where it is used.
"""

FOREIGN = ("anserini",)
"""The kinds of index that other programs make, without a card: each is asked for one, and where a name's index is."""


class IndexCard(Settings):
    """What an index says of itself: the kind of retriever that opens it, how many passages it has, and its files.

    `fields` are what a lexical index can be searched by and `language` that of its analyser (none: English), `joins`
    the kinds of the indexes that a fused one asks.
    """

    format: int = FORMAT
    kind: str
    passages: int
    fields: tuple[str, ...] = ()
    language: str = ""
    joins: tuple[str, ...] = ()
    files: dict[str, IndexFile]


JoinedHit = tuple[int, str, float]
"""Which of several indexes, the passage's id there, and its score."""


class JoinedSearch(ABC):
    """A search over several indexes of one kind, of different passages, as if they were one."""

    @abstractmethod
    def ranked(self, questions: Sequence[str], k: int) -> list[list[JoinedHit]]:
        """As `Retriever.ranked`, and from which index each passage is."""

    def close(self) -> None:
        """Release what was opened for it; the indexes stay open."""
        return


class Retriever(ABC):
    """Search and look-up over one corpus. Safe to use from many threads. As a context manager it closes itself.

    A subclass searches; the passages' texts come from the store beside its index. `open_retriever` makes one from the
    index's local folder, its card and the settings.

    What else differs from kind to kind, the class says: three facts, and class methods that read cards and files and
    open nothing.
    """

    CHANGES: ClassVar[bool] = False
    """Whether passages are added to such an index and deleted from it: others do not rely on what it has at a time."""
    HAS_STORE: ClassVar[bool] = True
    """Whether its folder has a passage store, which is read without opening the index."""
    MAKES_VECTORS: ClassVar[bool] = False
    """Whether `build_like` needs vectors, which many workers can make for it (`embedding`)."""

    @classmethod
    def located(cls, uri: str) -> str:
        """Where the index is that a `FOREIGN` kind knows by this name; any other address as it is."""
        return uri

    @classmethod
    def card_without_file(cls, uri: str) -> IndexCard | None:
        """The card of an index that has none, if it is one of this `FOREIGN` kind."""
        return None

    @classmethod
    def named_indexes(cls, uri: str, card: IndexCard) -> tuple[str, ...]:
        """Where the indexes are that this one searches, if it is made of others."""
        return ()

    @classmethod
    def named_models(cls, uri: str, card: IndexCard) -> tuple[str, ...]:
        """The paths of the models that a search loads from outside the index."""
        return ()

    @classmethod
    def check(cls, uri: str, card: IndexCard) -> None:
        """Raise `RetrievalError` for what is wrong beyond the files of the card; reads no more than other cards."""
        return

    @classmethod
    def check_content(cls, uri: str, card: IndexCard) -> int:
        """Compare every file with its checksum; returns the bytes. Raises `RetrievalError` at the first difference."""
        return check_content(uri, card.files)

    @classmethod
    def how_searched(cls, uri: str) -> str:
        """What was chosen for this index and what chooses otherwise, for whoever has just made it; empty: nothing."""
        return ""

    def __init__(self, folder: Path, card: IndexCard, settings: RetrieverConfig) -> None:
        self.card = card
        self._store = PassageStore(folder)

    @classmethod
    def open(cls, uri: str, card: IndexCard, settings: RetrieverConfig) -> Retriever:
        """Over a local copy of the index at `uri`."""
        return cls(local_index(uri, card.files), card, settings)

    @abstractmethod
    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """For each question at most k (passage id, score), best first. It must not fail for any question.

        There is at least one question, all are valid Unicode, and k is between 1 and the number of passages.
        """

    def sourced(self, questions: Sequence[str], k: int) -> list[list[SourcedHit]]:
        """As `ranked`, with what each index said of a passage: one that is made of others overrides it."""
        return [[(passage_id, score, ()) for passage_id, score in one] for one in self.ranked(questions, k)]

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The k best passages of each question, best first; fewer if fewer match."""
        ranked = self.search_sources(questions, k)
        wanted = list(dict.fromkeys(passage_id for one in ranked for passage_id, _, _ in one))
        found = dict(zip(wanted, self.passages(wanted), strict=True))
        return [[Hit(found[passage_id], score, sources) for passage_id, score, sources in one] for one in ranked]

    def search_ids(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """As `search`, without the texts: (passage id, score)."""
        asked = _askable(questions, k)
        return self.ranked(asked, min(k, self.card.passages)) if asked else []

    def search_sources(self, questions: Sequence[str], k: int) -> list[list[SourcedHit]]:
        """As `search_ids`, with what each index said of a passage."""
        asked = _askable(questions, k)
        return self.sourced(asked, min(k, self.card.passages)) if asked else []

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Passages by id, in order; raises `PassageNotFound` naming an unknown one."""
        return self._store.passages(ids)

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of these ids that it has a passage of."""
        return self._store.known(ids)

    @property
    def bank(self) -> tuple[str, int] | None:
        """The bank that this index takes along, if any, and which version of it goes with its passages."""
        return None

    @property
    def temperature(self) -> float | None:
        """What its scores were divided by where it was trained to tell how likely passages are; None: it was not."""
        return None

    def newest(self) -> Retriever:
        """This one, or, if the index has changed since it was opened, another one of it as it is now."""
        return self

    def retire(self) -> None:
        """Called when another one has taken over: close what that one does not share."""
        self.close()

    def build_like(self, passages: Iterable[Passage], uri: str, embedding: Embedding | None = None) -> int:
        """Index other passages at `uri` in the way of this index; returns how many. Raises `RetrievalError`.

        Vectors, if the index has any, are those that `embedding` gives, or that this process makes.
        """
        raise RetrievalError(
            f"an index of kind {self.card.kind} cannot be added to; make it again with `regrad index`",
            code="not_extendable",
            kind=self.card.kind,
        )

    def joined(self, others: Sequence[Self]) -> JoinedSearch:
        """A search over this index and others of its kind: by score, which must mean the same in each of them."""
        return _JoinedByScore([self, *others])

    def close(self) -> None:
        """Release files and memory."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _askable(questions: Sequence[str], k: int) -> list[str]:
    """The questions as they can be searched; raises `RetrievalError` for a wrong k."""
    if isinstance(questions, str):  # a string is a sequence of strings, too: each letter would be a question
        raise TypeError("search takes a sequence of questions: put a single one into a list")
    if k < 1:
        raise RetrievalError(f"k, the number of passages to find, must be at least 1, found {k}", code="bad_k", k=k)
    # A lone surrogate, which a JSON escape can give, is in no passage: the question is searched without it.
    return [question.encode(errors="replace").decode() for question in questions]


class _JoinedByScore(JoinedSearch):
    def __init__(self, indexes: Sequence[Retriever]) -> None:
        self._indexes = indexes

    def ranked(self, questions: Sequence[str], k: int) -> list[list[JoinedHit]]:
        """Of passages with equal scores, those of the first index come first."""
        found: list[list[JoinedHit]] = [[] for _ in questions]
        for number, index in enumerate(self._indexes):
            for hits, ranking in zip(found, index.search_ids(questions, k), strict=True):
                hits += [(number, passage_id, score) for passage_id, score in ranking]
        return [sorted(hits, key=lambda hit: -hit[2])[:k] for hits in found]


def write_card(
    folder: Path,
    kind: str,
    passages: int,
    fields: tuple[str, ...] = (),
    joins: tuple[str, ...] = (),
    language: str = "",
) -> None:
    """Make `folder` an index of this kind. To be called last: the card names every file there is."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): index_file(path) for path in paths}
    card = IndexCard(kind=kind, passages=passages, fields=fields, joins=joins, language=language, files=files)
    (folder / CARD).write_text(card.model_dump_json(indent=1) + "\n")


def read_index_card(uri: str) -> IndexCard:
    """The card of an index; raises `RetrievalError` if there is none, or of another format.

    For one that another program made (`FOREIGN`) it is made here.
    """
    uri = _located(uri)
    storage = Storage(uri)
    if not storage.exists(CARD):
        for kind in FOREIGN:
            if made := _class_of(kind).card_without_file(uri):
                return made
        raise RetrievalError(
            f"there is no index at {uri}: {CARD} is missing; make one with `regrad index`", code="not_found", uri=uri
        )
    data = storage.read(CARD)
    found = _format(data)
    if found != FORMAT:
        raise RetrievalError(
            f"the index at {uri} is of format {found}, and this version reads {FORMAT}; make it again with "
            "`regrad index`",
            code="other_format",
            uri=uri,
            expected=FORMAT,
            found=found,
        )
    try:
        card = IndexCard.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise RetrievalError(
            f"{CARD} of the index at {uri} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}; restore it, "
            "or make the index again with `regrad index`",
            code="damaged",
            uri=uri,
            file=CARD,
        ) from error
    RETRIEVERS.check(card.kind)
    return card


def _format(data: bytes) -> object:
    """What a card says of its format, whatever else is in it."""
    try:
        card = json.loads(data)
    except ValueError:
        return "unknown (it is not JSON)"
    return card.get("format", "unknown") if isinstance(card, dict) else "unknown"


def _located(uri: str) -> str:
    for kind in FOREIGN:
        uri = _class_of(kind).located(uri)
    return uri


def check_index(uri: str, settings: RetrieverConfig = RetrieverConfig()) -> IndexCard:
    """The card; raises `RetrievalError` unless there is a complete index at `uri` that this version can open.

    Settings of another kind of index are refused, too: they would change nothing.

    Nothing is downloaded, and only sizes are compared: opening an index should not read all of it. What comes from an
    object store is compared with its checksum as it arrives (`local_index`), a passage with its own at each look-up,
    and everything where it lies by `regrad index --check`.
    """
    uri = _located(uri)
    card, found = read_index_card(uri), Storage(uri).files()
    for name, file in card.files.items():
        size = found[name][0] if name in found else 0
        if size != file.bytes:
            raise RetrievalError(
                f"the index at {uri} is incomplete: {name} has {size} bytes of {file.bytes}; copy it again, or make it "
                "again with `regrad index`",
                code="incomplete",
                file=name,
                bytes=size,
                expected=file.bytes,
            )
    kind_of(card).check(uri, card)
    searched = {card.kind, *card.joins}
    if foreign := sorted(settings.given - searched):
        raise RetrievalError(
            f"the index at {uri} is {_kinds(card)}, but there are settings of {', '.join(foreign)}: take them out, or "
            "name an index of that kind",
            code="other_kind",
            uri=uri,
            expected=sorted(searched),
            found=foreign,
        )
    return card


def _kinds(card: IndexCard) -> str:
    return f"{card.kind} (of {', '.join(card.joins)})" if card.joins else card.kind


def kind_of(card: IndexCard) -> type[Retriever]:
    """The class of an index's kind: what holds of the kind, and what opens such an index."""
    return _class_of(card.kind)


def _class_of(kind_name: str) -> type[Retriever]:
    module, _, name = RETRIEVERS[kind_name].partition(":")
    kind: type[Retriever] = getattr(importlib.import_module(module), name)
    return kind


def may_change(uri: str, card: IndexCard) -> bool:
    """Whether passages come and go in this index, or in one that it searches."""
    kind = kind_of(card)
    return kind.CHANGES or any(may_change(index, read_index_card(index)) for index in kind.named_indexes(uri, card))


def open_retriever(uri: str, settings: RetrieverConfig = RetrieverConfig()) -> Retriever:
    """The retriever that an index's card names, over a local copy of the index; raises `RetrievalError`."""
    uri = _located(uri)
    card = check_index(uri, settings)
    return kind_of(card).open(uri, card, settings)
