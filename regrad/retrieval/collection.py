"""A corpus that changes: its indexes and its bank, added to and deleted from as one.

A collection is an index without passages of its own. Its card names a version, which is never changed; a version says

- which indexes there are: the first ones, wherever they lie, and one of each kind for every addition (`segments/`);
- which of their passages are hidden, because they were deleted or replaced since: no search finds and no look-up gives
  them;
- which version of a bank has the gradients of the rest.

Indexes of one kind are searched as one (`Retriever.joined`), kinds are fused. Changes are made by
`regrad/retrieval/collection_changes.py`; whoever has a collection open asks for the `newest`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, ValidationError

from regrad.data.passages import Passage
from regrad.errors import PassageNotFound, RetrievalError
from regrad.retrieval.base import CARD, IndexCard, Retriever, check_index, open_retriever, read_index_card
from regrad.retrieval.config import FusionConfig, RetrieverConfig
from regrad.retrieval.fused import fused_with_sources
from regrad.retrieval.hits import SourcedHit
from regrad.settings import Settings
from regrad.storage import Storage

KIND = "collection"
_SLACK = 16


class Segment(Settings):
    """The indexes of the same passages, one of each kind, and which of the passages are hidden.

    An index below the collection is named from there (`segments/...`), any other by its location. `cards` are the
    SHA-256 (hex) of the indexes' cards, which name all of their files.
    """

    indexes: tuple[str, ...] = Field(min_length=1)
    cards: tuple[str, ...] = Field(min_length=1)
    passages: int = Field(ge=1, description="passages, hidden ones included")
    hidden: tuple[str, ...] = ()


class CollectionBank(Settings):
    """The bank of a collection's passages, and which version of it goes with these indexes."""

    uri: str
    meta_init: str = Field(description="the MetaInit of the bank's gradients")
    codec: str
    version: int = Field(ge=1)


class CollectionVersion(Settings):
    """One version; the newest segment is the last."""

    format: Literal[1] = 1
    version: int = Field(ge=1)
    segments: tuple[Segment, ...] = Field(min_length=1)
    fusion: FusionConfig = FusionConfig()
    bank: CollectionBank | None = None

    @property
    def passages(self) -> int:
        """How many are not hidden."""
        return sum(segment.passages - len(segment.hidden) for segment in self.segments)

    def encoded(self) -> bytes:
        """The content of its file."""
        return (self.model_dump_json(indent=1) + "\n").encode()


def read_version(uri: str, card: IndexCard | None = None) -> CollectionVersion:
    """The version in force, or that of a card; raises `RetrievalError` if there is no collection, or it is damaged."""
    card = card or read_index_card(uri)
    if card.kind != KIND:
        raise RetrievalError(
            f"the index at {uri} is of kind {card.kind}, which does not change; make a collection of it with "
            "`regrad passages create`",
            code="no_collection",
            uri=uri,
            kind=card.kind,
        )
    ((name, file),) = card.files.items()
    data = Storage(uri).read(name)
    try:
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise ValueError("it is not what was written")
        return CollectionVersion.model_validate_json(data)
    except (ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RetrievalError(
            f"{uri}/{name} is damaged: {reason}; restore it", code="damaged", uri=uri, file=name
        ) from error


def card_digest(index: str) -> str:
    """SHA-256 (hex) of an index's card."""
    return hashlib.sha256(Storage(index).read(CARD)).hexdigest()


def check_segments(uri: str, version: CollectionVersion) -> None:
    """Raise `RetrievalError` if an index that the version names is gone, or is not the one that it was made of.

    An index that was rebuilt at the same place has other passages than those that are hidden.
    """
    for segment in version.segments:
        for index, expected in zip(segment.indexes, segment.cards, strict=True):
            place = location(uri, index)
            check_index(place)
            if card_digest(place) != expected:
                raise RetrievalError(
                    f"the index at {place} was rebuilt after the collection at {uri} was created from it; create the "
                    "collection again, at another place",
                    code="index_changed",
                    uri=uri,
                    index=place,
                )


def location(uri: str, index: str) -> str:
    """Where an index of a segment lies."""
    return f"{uri.rstrip('/')}/{index}" if index.startswith("segments/") else index


class CollectionRetriever(Retriever):
    """Searches one version of a collection. Safe to use from many threads."""

    CHANGES = True
    HAS_STORE = False

    @classmethod
    def named_indexes(cls, uri: str, card: IndexCard) -> tuple[str, ...]:
        """See `Retriever`: those of every segment."""
        return tuple(location(uri, index) for each in read_version(uri, card).segments for index in each.indexes)

    @classmethod
    def check(cls, uri: str, card: IndexCard) -> None:
        """See `Retriever` and `check_segments`."""
        check_segments(uri, read_version(uri, card))

    def __init__(
        self, uri: str, card: IndexCard, settings: RetrieverConfig, opened: dict[str, Retriever] | None = None
    ) -> None:
        self.card = card
        self.version = read_version(uri, card)
        self._uri = uri
        self._settings = settings
        self._opened = opened if opened is not None else {}
        segments = self.version.segments
        check_segments(uri, self.version)
        self._hidden = [frozenset(segment.hidden) for segment in segments]
        self._kinds = [
            [self._index(segment.indexes[kind]) for segment in segments] for kind in range(len(segments[0].indexes))
        ]
        self._joined = [first.joined(others) for first, *others in self._kinds]

    @classmethod
    def open(cls, uri: str, card: IndexCard, settings: RetrieverConfig) -> Retriever:
        """Each of its indexes has a local copy of its own: an addition brings the new ones alone."""
        return cls(uri, card, settings)

    @property
    def bank(self) -> tuple[str, int] | None:
        """See `Retriever`."""
        return (self.version.bank.uri, self.version.bank.version) if self.version.bank else None

    @property
    def temperature(self) -> float | None:
        """See `Retriever`: that of its indexes, if they are of one kind and have the same."""
        found = {index.temperature for kind in self._kinds for index in kind}
        return found.pop() if len(self._kinds) == 1 and len(found) == 1 else None

    def newest(self) -> Retriever:
        """See `Retriever`. Indexes that both versions have are shared, and stay open."""
        card = read_index_card(self._uri)
        return self if card == self.card else CollectionRetriever(self._uri, card, self._settings, self._opened)

    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """See `Retriever`."""
        return [[hit[:2] for hit in hits] for hits in self.sourced(questions, k)]

    def sourced(self, questions: Sequence[str], k: int) -> list[list[SourcedHit]]:
        """See `Retriever`; an index of a single kind has no sources."""
        if len(self._kinds) == 1:
            return self._visible(0, questions, k)
        fusion = self.version.fusion
        found = [self._visible(kind, questions, max(k, fusion.depth)) for kind in range(len(self._kinds))]
        return [fused_with_sources(each, self.card.joins, fusion)[:k] for each in zip(*found, strict=True)]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """See `Retriever`."""
        found: dict[str, Passage] = {}
        for number, index in reversed(list(enumerate(self._kinds[0]))):
            left = [each for each in dict.fromkeys(ids) if each not in found]
            here = sorted(index.known(left) - self._hidden[number])
            found.update(zip(here, index.passages(here), strict=True))
        for each in ids:
            if each not in found:
                raise PassageNotFound(f"the collection has no passage {each!r:.80}", passage_id=each)
        return [found[each] for each in ids]

    def known(self, ids: Sequence[str]) -> set[str]:
        """See `Retriever`."""
        found = [index.known(ids) - hidden for index, hidden in zip(self._kinds[0], self._hidden, strict=True)]
        return set().union(*found)

    def retire(self) -> None:
        """Close what is this version's alone: another one goes on with the indexes."""
        for joined in self._joined:
            joined.close()

    def close(self) -> None:
        """See `Retriever`."""
        self.retire()
        for index in self._opened.values():
            index.close()

    def _index(self, name: str) -> Retriever:
        if name not in self._opened:
            place = location(self._uri, name)
            self._opened[name] = open_retriever(place, self._settings.only({read_index_card(place).kind}))
        return self._opened[name]

    def _visible(self, kind: int, questions: Sequence[str], k: int) -> list[list[SourcedHit]]:
        """The best of one kind of index without hidden passages."""
        hidden, everything = sum(map(len, self._hidden)), sum(segment.passages for segment in self.version.segments)
        # Hidden passages take places, but seldom those of many questions: asking for all of them would be slow.
        depth = min(everything, k + min(hidden, _SLACK))
        while True:
            found = self._joined[kind].ranked(questions, depth)
            left: list[list[SourcedHit]] = [
                [(passage_id, score, ()) for index, passage_id, score in hits if passage_id not in self._hidden[index]]
                for hits in found
            ]
            short = any(len(kept) < k and len(hits) == depth for kept, hits in zip(left, found, strict=True))
            if not short or depth == everything:
                return [kept[:k] for kept in left]
            depth = min(everything, 4 * depth)
