"""A kind of index that names another one, of which only these tests know: all that differs by kind it says itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval.base import CARD, IndexCard, Retriever, check_index, open_retriever, write_card
from regrad.retrieval.config import RetrieverConfig
from regrad.storage import Storage, directory_writer

_NAMED = "named.txt"


def build_mirrored_index(index: str, uri: str) -> int:
    """Write an index at `uri` that gives what the other one finds, the worst first."""
    inner = check_index(index)
    with directory_writer(uri, CARD) as folder:
        (folder / _NAMED).write_text(index)
        write_card(folder, "mirrored", inner.passages, joins=(inner.kind,))
    return inner.passages


class MirroredRetriever(Retriever):
    HAS_STORE = False

    @classmethod
    def named_indexes(cls, uri: str, card: IndexCard) -> tuple[str, ...]:
        return (Storage(uri).read(_NAMED).decode(),)

    @classmethod
    def check(cls, uri: str, card: IndexCard) -> None:
        for index in cls.named_indexes(uri, card):
            if check_index(index).passages != card.passages:
                raise RetrievalError(f"the mirror at {uri} is of another index", code="other_corpus", uri=uri)

    @classmethod
    def how_searched(cls, uri: str) -> str:
        return "a mirror"

    def __init__(self, folder: Path, card: IndexCard, settings: RetrieverConfig) -> None:
        self.card = card
        self._inner = open_retriever((folder / _NAMED).read_text(), settings)

    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        found = self._inner.search_ids(questions, self.card.passages)
        return [[(passage_id, -score) for passage_id, score in reversed(hits)][:k] for hits in found]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        return self._inner.passages(ids)

    def known(self, ids: Sequence[str]) -> set[str]:
        return self._inner.known(ids)

    def close(self) -> None:
        self._inner.close()


class UncardedRetriever(MirroredRetriever):
    """The same as if another program made it: the directory is all there is, and `mirror-of:` before it a name."""

    @classmethod
    def located(cls, uri: str) -> str:
        return uri.rpartition("mirror-of:")[2]

    @classmethod
    def card_without_file(cls, uri: str) -> IndexCard | None:
        if not Storage(uri).exists(_NAMED):
            return None
        inner = check_index(Storage(uri).read(_NAMED).decode())
        return IndexCard(kind="mirrored", passages=inner.passages, joins=(inner.kind,), files={})


class ChangingRetriever(MirroredRetriever):
    """The same, of passages that come and go."""

    CHANGES = True

    @classmethod
    def check(cls, uri: str, card: IndexCard) -> None:
        return
