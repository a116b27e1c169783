"""A retriever that counts common words: what adding one takes, and a second kind for the conformance tests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from regrad.data.passages import Passage
from regrad.retrieval.base import CARD, IndexCard, Retriever
from regrad.retrieval.config import RetrieverConfig
from regrad.retrieval.passage_store import store_passages
from regrad.storage import directory_writer


def build_overlap_index(passages: Iterable[Passage], uri: str) -> int:
    with directory_writer(uri, CARD) as folder:
        stored = [passage for batch in store_passages(passages, folder) for passage in batch]
        (folder / "words.txt").write_text(
            "\n".join(f"{p.id}\t{' '.join(_words(p.title + ' ' + p.text))}" for p in stored)
        )
        (folder / CARD).write_text(IndexCard(kind="overlap", passages=len(stored)).model_dump_json())
    return len(stored)


class OverlapRetriever(Retriever):
    def __init__(self, folder: Path, card: IndexCard, settings: RetrieverConfig) -> None:
        super().__init__(folder, card, settings)
        lines = (line.split("\t") for line in (folder / "words.txt").read_text().splitlines())
        self._words = {passage_id: set(words.split()) for passage_id, words in lines}

    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        return [self._best(set(_words(question)), k) for question in questions]

    def _best(self, asked: set[str], k: int) -> list[tuple[str, float]]:
        scores = [(passage_id, float(len(asked & words))) for passage_id, words in self._words.items()]
        return sorted((one for one in scores if one[1]), key=lambda one: -one[1])[:k]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
