"""Several indexes of one corpus as one: their rankings joined by reciprocal ranks or by scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval.base import CARD, IndexCard, Retriever, check_index, may_change, open_retriever, write_card
from regrad.retrieval.config import FuseConfig, FusionConfig, RetrieverConfig
from regrad.retrieval.hits import HitSource, SourcedHit
from regrad.storage import Storage, directory_writer

_FILE = "fused.json"

Ranking = Sequence[tuple[str, float]]
"""(passage id, score), best first."""


def fuse_indexes(settings: FuseConfig, uri: str) -> int:
    """Write an index at `uri` that names others; returns how many passages each has.

    Raises `RetrievalError` if one cannot be opened, or has another number of passages than the first.
    """
    count, kinds = _common(settings.indexes, uri)
    with directory_writer(uri, CARD) as folder:
        (folder / _FILE).write_text(settings.model_dump_json(indent=1) + "\n")
        write_card(folder, "fused", count, joins=kinds)
    return count


def _common(indexes: Sequence[str], uri: str, expected: int | None = None) -> tuple[int, tuple[str, ...]]:
    """How many passages each has, and of which kinds they are, each once."""
    cards = [check_index(index) for index in indexes]
    if any(may_change(index, card) for index, card in zip(indexes, cards, strict=True)):
        raise RetrievalError(
            f"{uri} would not follow what changes in a collection; give all indexes to the collection, which fuses "
            "them itself (`regrad passages create`)",
            code="bad_kinds",
            kinds=[card.kind for card in cards],
        )
    counts = [card.passages for card in cards]
    if len({*counts, expected or counts[0]}) > 1:
        found = ", ".join(f"{count:,} in {index}" for count, index in zip(counts, indexes, strict=True))
        before = f", and had {expected:,} when they were joined" if expected else ""
        raise RetrievalError(
            f"the indexes of {uri} are not of one corpus: there are {found} passages{before}; make them of the same "
            "corpus, then join them again",
            code="other_corpus",
            uri=uri,
            found=counts,
        )
    return counts[0], tuple(dict.fromkeys(kind for card in cards for kind in (card.joins or (card.kind,))))


def _settings_of(index: str, settings: RetrieverConfig) -> RetrieverConfig:
    card = check_index(index)
    return settings.only({card.kind, *card.joins})


def _read(data: bytes) -> FuseConfig:
    return FuseConfig.model_validate_json(data)


class FusedRetriever(Retriever):
    """Asks every index, and joins what they find. The texts are the first one's."""

    HAS_STORE = False

    @classmethod
    def named_indexes(cls, uri: str, card: IndexCard) -> tuple[str, ...]:
        """See `Retriever`."""
        return _read(Storage(uri).read(_FILE)).indexes

    def __init__(self, folder: Path, card: IndexCard, settings: RetrieverConfig) -> None:
        self.card = card
        self._fuse = _read((folder / _FILE).read_bytes())
        _common(self._fuse.indexes, str(folder), card.passages)
        self._indexes = [open_retriever(index, _settings_of(index, settings)) for index in self._fuse.indexes]
        self._names = source_names([index.card.kind for index in self._indexes])

    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """See `Retriever`. Of passages with equal scores the first index's order decides, then the second's."""
        return [[hit[:2] for hit in hits] for hits in self.sourced(questions, k)]

    def sourced(self, questions: Sequence[str], k: int) -> list[list[SourcedHit]]:
        """See `Retriever`."""
        depth = max(k, self._fuse.depth)
        found = [index.search_sources(questions, depth) for index in self._indexes]
        return [fused_with_sources(each, self._names, self._fuse)[:k] for each in zip(*found, strict=True)]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """See `Retriever`."""
        return self._indexes[0].passages(ids)

    def known(self, ids: Sequence[str]) -> set[str]:
        """See `Retriever`."""
        return self._indexes[0].known(ids)

    def close(self) -> None:
        """See `Retriever`."""
        for index in self._indexes:
            index.close()


def source_names(kinds: Sequence[str]) -> list[str]:
    """What each of these indexes is called: its kind, numbered if there are several of it."""
    places = [kinds[: place + 1].count(kind) for place, kind in enumerate(kinds)]
    return [kind if kinds.count(kind) == 1 else f"{kind}-{place}" for kind, place in zip(kinds, places, strict=True)]


def with_sources(name: str, ranking: Sequence[SourcedHit]) -> dict[str, tuple[HitSource, ...]]:
    """For each passage what the index of this name says of it, and then what those inside that index do."""
    return {
        passage_id: (
            HitSource(name, rank, score),
            *(HitSource(f"{name}/{inner.name}", inner.rank, inner.score) for inner in inside),
        )
        for rank, (passage_id, score, inside) in enumerate(ranking, start=1)
    }


def fused_with_sources(
    rankings: Sequence[Sequence[SourcedHit]], names: Sequence[str], settings: FusionConfig
) -> list[SourcedHit]:
    """One ranking of several, best first, with what each said of a passage."""
    weights = settings.weights or (1.0,) * len(rankings)
    said = [with_sources(name, ranking) for name, ranking in zip(names, rankings, strict=True)]
    return [
        (passage_id, score, tuple(source for one in said for source in one.get(passage_id, ())))
        for passage_id, score in fused([[hit[:2] for hit in one] for one in rankings], weights, settings)
    ]


def fused(rankings: Sequence[Ranking], weights: Sequence[float], settings: FusionConfig) -> list[tuple[str, float]]:
    """One ranking of several, best first."""
    scores: dict[str, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        parts = _by_rank(ranking, settings.constant) if settings.method == "rrf" else _by_score(ranking)
        for (passage_id, _), part in zip(ranking, parts, strict=True):
            scores[passage_id] = scores.get(passage_id, 0.0) + weight * part
    return sorted(scores.items(), key=lambda item: -item[1])


def _by_rank(ranking: Ranking, constant: float) -> list[float]:
    return [1 / (constant + rank) for rank in range(1, len(ranking) + 1)]


def _by_score(ranking: Ranking) -> list[float]:
    """From 1, the best that was found, to 0, the worst; 1 if all are alike."""
    values = [score for _, score in ranking]
    low, high = min(values, default=0.0), max(values, default=0.0)
    return [(value - low) / (high - low) if high > low else 1.0 for value in values]
