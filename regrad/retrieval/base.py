"""What a retriever is: a question in, passages with scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from regrad.data.passages import Passage


@dataclass(frozen=True)
class Hit:
    """A retrieved passage and its score (higher is better; the scale is the retriever's own)."""

    passage: Passage
    score: float


class Retriever(Protocol):
    """Search and look-up over one corpus."""

    def search(self, question: str, k: int) -> list[Hit]:
        """The k best passages, best first; fewer if fewer match."""
        ...

    def get(self, passage_ids: Sequence[str]) -> list[Passage]:
        """Passages by id, in order; raises `PassageNotFound` naming an unknown one."""
        ...
