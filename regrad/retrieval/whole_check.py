"""Every byte of an index, and of those that it is made of, compared with the checksums of their cards."""

from __future__ import annotations

from dataclasses import dataclass

from regrad.retrieval.base import check_index, kind_of


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
            kind = kind_of(card)
            done[place] = Checked(place, card.kind, kind.check_content(place, card))
            waiting += kind.named_indexes(place, card)
    return list(done.values())
