"""What a retriever is, and opening one: the card of an index says which class searches it."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.registry import Registry
from regrad.retrieval.config import RetrieverConfig
from regrad.retrieval.passage_store import PassageStore
from regrad.settings import Settings
from regrad.storage import Storage, local_directory

CARD = "regrad-index.json"
FORMAT = 2

RETRIEVERS: Registry[str] = Registry("kind of index", RetrievalError, {"bm25": "regrad.retrieval.bm25:LuceneRetriever"})
"""The class that opens each kind of index, as `module:class`: what one kind imports (a JVM) another does not need."""


class IndexCard(Settings):
    """What an index says of itself: the kind of retriever that opens it, and how many passages it has."""

    format: int = FORMAT
    kind: str
    passages: int


@dataclass(frozen=True)
class Hit:
    """A retrieved passage and its score (higher is better; the scale is the retriever's own)."""

    passage: Passage
    score: float


class Retriever(ABC):
    """Search and look-up over one corpus. Safe to use from many threads. A context manager that closes what it opened.

    A subclass searches; the passages' texts come from the store beside its index. It is made of the index's local
    folder, its card and the settings.
    """

    def __init__(self, folder: Path, card: IndexCard, settings: RetrieverConfig) -> None:
        self.card, self._store = card, PassageStore(folder)

    @abstractmethod
    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """For each question at most k (passage id, score), the best first. No question may make it fail."""

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The k best passages of each question, best first; fewer if fewer match."""
        ranked = self.ranked(questions, k)
        wanted = list(dict.fromkeys(passage_id for one in ranked for passage_id, _ in one))
        found = dict(zip(wanted, self.passages(wanted), strict=True))
        return [[Hit(found[passage_id], score) for passage_id, score in one] for one in ranked]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Passages by id, in order; raises `PassageNotFound` naming an unknown one."""
        return self._store.passages(ids)

    def close(self) -> None:
        """Give back files and memory."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_index_card(uri: str) -> IndexCard:
    """The card of an index; raises `RetrievalError` if there is none, or of another format."""
    storage = Storage(uri)
    if not storage.exists(CARD):
        raise RetrievalError(f"there is no index at {uri}: {CARD} is missing; make one with `regrad index`")
    again = f"the index at {uri} is not of format {FORMAT}, which this version reads; make it again with `regrad index`"
    try:
        card = IndexCard.model_validate_json(storage.read(CARD))
    except ValidationError as error:
        raise RetrievalError(again) from error
    if card.format != FORMAT:
        raise RetrievalError(again)
    RETRIEVERS.check(card.kind)
    return card


def check_index(uri: str) -> None:
    """Raise `RetrievalError` if there is no index at `uri` that this version can open; nothing is downloaded."""
    read_index_card(uri)


def open_retriever(uri: str, settings: RetrieverConfig = RetrieverConfig()) -> Retriever:
    """The retriever that an index's card names, over a local copy of the index; raises `RetrievalError`."""
    card = read_index_card(uri)
    module, _, name = RETRIEVERS[card.kind].partition(":")
    opened: Retriever = getattr(importlib.import_module(module), name)(local_directory(uri), card, settings)
    return opened
