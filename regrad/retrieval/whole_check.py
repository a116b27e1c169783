"""Every byte of an index, and of those that it is made of, compared with the checksums of their cards."""

from __future__ import annotations

import json
from dataclasses import dataclass

from regrad.errors import RetrievalError
from regrad.retrieval.base import IndexCard, check_index
from regrad.retrieval.collection import location, read_version
from regrad.retrieval.index_files import check_content
from regrad.storage import Storage


@dataclass(frozen=True)
class Checked:
    """An index in which nothing is damaged, and the bytes that were read of it."""

    uri: str
    kind: str
    bytes: int


def check_whole(uri: str) -> list[Checked]:
    """Read all of the index, then all of each index that it names, each once.

    Raises `RetrievalError` at the first file that is not what was written.
    """
    waiting, done = [uri], dict[str, Checked]()
    while waiting:
        place = waiting.pop(0)
        if place not in done:
            card = check_index(place)
            if card.kind == "anserini":
                raise RetrievalError(
                    f"{place} has no checksums: Anserini made it; compare its archive with pyserini's MD5",
                    code="no_checksums",
                    uri=place,
                )
            done[place] = Checked(place, card.kind, check_content(place, card.files))
            waiting += _named(place, card)
    return list(done.values())


def _named(uri: str, card: IndexCard) -> list[str]:
    if card.kind == "collection":
        return [location(uri, index) for segment in read_version(uri, card).segments for index in segment.indexes]
    if card.kind == "fused":
        return list(json.loads(Storage(uri).read("fused.json"))["indexes"])
    if card.kind == "reranked":
        return [json.loads(Storage(uri).read("reranked.json"))["index"]]
    return []
