"""What a search gives: passages, how good they are, and which index said so."""

from __future__ import annotations

from dataclasses import dataclass

from regrad.data.passages import Passage


@dataclass(frozen=True)
class HitSource:
    """What one of several indexes said of a passage: the passage's rank there, from 1, and its score there.

    `name` is the index's kind; of several of one kind with its place among them (`dense-2`), of an index inside another
    after that one's (`fused/bm25`).
    """

    name: str
    rank: int
    score: float


@dataclass(frozen=True)
class Hit:
    """A retrieved passage and its score (higher is better; the scale is the retriever's own).

    `sources` are those of an index that is made of others: the ones that found the passage.
    """

    passage: Passage
    score: float
    sources: tuple[HitSource, ...] = ()


SourcedHit = tuple[str, float, tuple[HitSource, ...]]
"""A passage's id, its score, and what the indexes said of it."""
