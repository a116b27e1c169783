"""Making a collection of indexes, adding passages to it and hiding passages of it: each gives a new version, or none.

The indexes of an addition are whole before a version names them, and a version is whole before the card names it. Who
is killed in between leaves files that nothing reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.locking import exclusive
from regrad.retrieval.base import CARD, IndexCard, check_index, kind_of, open_retriever, read_index_card
from regrad.retrieval.collection import (
    KIND,
    CollectionBank,
    CollectionVersion,
    Segment,
    card_digest,
    check_segments,
    location,
    read_version,
)
from regrad.retrieval.config import FusionConfig
from regrad.retrieval.index_files import IndexFile, local_index
from regrad.retrieval.passage_store import PassageStore
from regrad.storage import Storage, check_replaceable

if TYPE_CHECKING:
    from regrad.retrieval.embedding import Embedding


def create_collection(
    uri: str, indexes: Sequence[str], fusion: FusionConfig = FusionConfig(), bank: CollectionBank | None = None
) -> CollectionVersion:
    """A collection at `uri` of indexes of the same passages, one of each kind.

    Raises `RetrievalError` if there is something at `uri`, if an index cannot be opened or joined, or if they do not
    have the same number of passages.
    """
    first = _first_segment(indexes)
    if fusion.weights is not None and len(fusion.weights) != len(indexes):
        raise RetrievalError(
            f"{len(fusion.weights)} weights for {len(indexes)} indexes; give one for each", code="bad_weights"
        )
    with _alone(uri):
        if Storage(uri).exists(CARD):
            raise RetrievalError(f"there is an index at {uri} already; name another place", code="exists", uri=uri)
        check_replaceable(uri, CARD)
        return publish(uri, CollectionVersion(version=1, segments=(first,), fusion=fusion, bank=bank))


def replace_indexes(uri: str, indexes: Sequence[str], bank: CollectionBank | None = None) -> CollectionVersion:
    """A version of the collection at `uri` that has these indexes and this bank alone, in the places of all others.

    Without a collection it is made. One that has just these is left as it is. Raises as `create_collection`.
    """
    if not Storage(uri).exists(CARD):
        return create_collection(uri, indexes, bank=bank)
    first = _first_segment(indexes)
    with changing(uri) as version:
        if version.segments == (first,) and version.bank == bank:
            return version
        return publish(uri, version.model_copy(update={"segments": (first,), "bank": bank}))


def _first_segment(indexes: Sequence[str]) -> Segment:
    cards = [check_index(index) for index in indexes]
    kinds = [card.kind for card in cards]
    if len(set(kinds)) < len(kinds) or any(map(_made_of_others, indexes, cards)):
        raise RetrievalError(
            f"a collection takes one index of each kind, and fuses them itself; found {', '.join(kinds)}",
            code="bad_kinds",
            kinds=kinds,
        )
    if storeless := [index for index, card in zip(indexes, cards, strict=True) if not kind_of(card).HAS_STORE]:
        raise RetrievalError(
            f"{storeless[0]} has no passage store, which a collection needs: make an index of its corpus with "
            "`regrad index`",
            code="bad_kinds",
            kinds=kinds,
        )
    if len({card.passages for card in cards}) > 1:
        counts = [card.passages for card in cards]
        raise RetrievalError(
            f"the indexes are not of one corpus: they have {', '.join(f'{count:,}' for count in counts)} passages; "
            "make them of the same corpus",
            code="other_corpus",
            found=counts,
        )
    digests = tuple(card_digest(index) for index in indexes)
    return Segment(indexes=tuple(indexes), cards=digests, passages=cards[0].passages)


def _made_of_others(index: str, card: IndexCard) -> bool:
    return bool(kind_of(card).named_indexes(index, card))


@contextmanager
def changing(uri: str) -> Iterator[CollectionVersion]:
    """The version in force, and nobody else changes the collection inside the block; raises `RetrievalError`."""
    read_version(uri)  # nothing is locked at a place where no collection is
    with _alone(uri):
        version = read_version(uri)
        check_segments(uri, version)
        yield version


def _alone(uri: str) -> AbstractContextManager[None]:
    def busy(holder: str) -> RetrievalError:
        return RetrievalError(f"the collection at {uri} is being changed by {holder}; wait", code="busy", uri=uri)

    return exclusive(Storage(f"{uri.rstrip('/')}.change"), busy)


def write_segment(
    uri: str,
    version: CollectionVersion,
    passages: Callable[[], Iterable[Passage]],
    embedding: Embedding | None = None,
) -> Segment:
    """The indexes of an addition, one of each kind that the collection has; no version names them yet.

    `passages` is called once for each kind; vectors are those that `embedding` gives, or that this process makes.
    Raises `RetrievalError` if there are no passages, or an id occurs twice.
    """
    number, indexes, counts = _next_number(uri), [], []
    for like in version.segments[0].indexes:
        with open_retriever(location(uri, like)) as first:
            name = f"segments/{number:08d}-{first.card.kind}"
            counts.append(first.build_like(passages(), location(uri, name), embedding))
        indexes.append(name)
    if len(set(counts)) > 1:
        raise RetrievalError(
            "the passages changed while they were indexed; run again", code="corpus_changed", found=counts
        )
    digests = tuple(card_digest(location(uri, index)) for index in indexes)
    return Segment(indexes=tuple(indexes), cards=digests, passages=counts[0])


def known_ids(uri: str, version: CollectionVersion, ids: Iterable[str]) -> set[str]:
    """Those of these ids that the version has a passage of."""
    return set().union(*_places(uri, version, ids))


def without(uri: str, version: CollectionVersion, ids: Iterable[str]) -> CollectionVersion:
    """The version with these passages hidden; ids that it does not have change nothing."""
    places = zip(version.segments, _places(uri, version, ids), strict=True)
    hiding = [one.model_copy(update={"hidden": tuple(sorted({*one.hidden, *here}))}) for one, here in places]
    return version.model_copy(update={"segments": tuple(hiding)})


def with_segment(uri: str, version: CollectionVersion, added: Segment) -> CollectionVersion:
    """The version with an addition, whose passages take the places of those with the same ids."""
    store = _store(location(uri, added.indexes[0]))
    changed = without(uri, version, store.ids())
    store.close()
    return changed.model_copy(update={"segments": (*changed.segments, added)})


def _places(uri: str, version: CollectionVersion, ids: Iterable[str]) -> list[set[str]]:
    """For each segment those of the ids that it has and that are not hidden."""
    wanted = list(ids)
    found = []
    for segment in version.segments:
        # The texts alone: opening the index would start a JVM or load an encoder.
        store = _store(location(uri, segment.indexes[0]))
        found.append(store.known(wanted) - set(segment.hidden))
        store.close()
    return found


def _store(index: str) -> PassageStore:
    return PassageStore(local_index(index, read_index_card(index).files))


def _next_number(uri: str) -> int:
    """Above every version that was ever written, in force or not."""
    names = Storage(uri).list("versions")
    return 1 + max(
        (int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit()), default=0
    )


def publish(uri: str, version: CollectionVersion) -> CollectionVersion:
    """Write the version under the next free number, and put it in force."""
    storage = Storage(uri)
    if version.passages < 1:
        raise RetrievalError(
            f"nothing would be left in the collection at {uri}: a search needs a passage; remove the collection itself",
            code="empty_collection",
            uri=uri,
        )
    numbered = version.model_copy(update={"version": _next_number(uri)})
    name, data = f"versions/{numbered.version:08d}.json", numbered.encoded()
    if not storage.create(name, data):
        raise RetrievalError(
            f"the collection at {uri} was changed by another process just now; run again", code="busy", uri=uri
        )
    file = IndexFile(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    kinds = tuple(read_index_card(location(uri, index)).kind for index in numbered.segments[0].indexes)
    card = IndexCard(kind=KIND, passages=numbered.passages, joins=kinds, files={name: file})
    storage.write(CARD, (card.model_dump_json(indent=1) + "\n").encode())
    return numbered
