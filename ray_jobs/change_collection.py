"""Add passages to a collection: to its indexes and to its bank, as one version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ray_jobs.build_bank import Built, build
from ray_jobs.cluster import cluster, run_task
from ray_jobs.waiting import ONE_CPU, wait_for_room
from regrad.bank.config import BuildConfig
from regrad.bank.format import read_manifest
from regrad.bank.maintenance import delete, unknown_ids
from regrad.data.corpora import read_passages
from regrad.data.passages import Passage
from regrad.errors import PassageNotFound
from regrad.retrieval.base import kind_of, read_index_card
from regrad.retrieval.collection import CollectionBank, CollectionVersion, Segment, location
from regrad.retrieval.collection_changes import changing, known_ids, publish, with_segment, without, write_segment
from regrad.retrieval.config import PART_PASSAGES, DenseConfig, IndexConfig
from regrad.settings import WorkersConfig, apply_override, parse_settings
from regrad.storage import Storage, parts_uri

if TYPE_CHECKING:
    from regrad.retrieval.embedding import EncoderIdentity, Vectors

_ANY_BANK = CollectionBank(uri="bank", meta_init="meta-init", codec="bf16", version=1)


def add(uri: str, corpus: str, changes: Sequence[str] = ()) -> tuple[CollectionVersion, Built | None]:
    """Index the passages of a corpus and compute their gradients; then a version that has both is current.

    Passages with the ids of older ones take their places. `changes` are overrides of the settings of `regrad build`.
    The bank's new version comes first, so whatever is found has its gradient; until the indexes follow, a replaced
    passage is found with its older text, whose gradient is missing. Interrupted before the end, nothing is found that
    was not found before, and the same call computes no gradient again. Raises `RetrievalError`, `CorpusError` or
    `BankError`.
    """
    settings = _build_config(_ANY_BANK, corpus, changes)  # reports a wrong setting before anything is read
    with changing(uri) as version:
        segment = _index(uri, version, corpus, settings.cluster)
        built = None
        if bank := version.bank:
            # The gradients first: whatever is found has one.
            built = build(_build_config(bank, corpus, changes), add=True)
            version = _with_bank(version, built.manifest.version)
        changed = publish(uri, with_segment(uri, version, segment))
        Storage(parts_uri(_segments(uri))).remove()  # only now: until then, the same call embeds nothing again
        return changed, built


def _index(uri: str, version: CollectionVersion, corpus: str, workers: WorkersConfig) -> Segment:
    """The indexes of an addition; more than one block of vectors is made by a pool of workers."""
    kinds = [kind_of(read_index_card(location(uri, index))) for index in version.segments[0].indexes]
    vectors = any(kind.MAKES_VECTORS for kind in kinds)
    if vectors and any(True for _ in islice(read_passages(corpus), PART_PASSAGES, None)):
        # Here, since only this kind needs the library of encoders, which is an extra.
        from ray_jobs.embedding import run_with_pool

        return run_with_pool(corpus, workers, _index_with_pool, uri, version, corpus, workers)
    with cluster():
        wait_for_room(ONE_CPU)
        return run_task(write_segment, uri, version, lambda: read_passages(corpus), num_cpus=1)


def _index_with_pool(
    uri: str, version: CollectionVersion, corpus: str, workers: WorkersConfig, progress: Any
) -> Segment:
    from ray_jobs.embedding import pooled_vectors

    def embedding(
        blocks: Iterator[Sequence[Passage]], encoder: EncoderIdentity, settings: DenseConfig
    ) -> Iterator[Vectors]:
        config = IndexConfig(corpus=corpus, output=_segments(uri), dense=settings, cluster=workers)
        return pooled_vectors(blocks, encoder, config, progress)

    return write_segment(uri, version, lambda: read_passages(corpus), embedding)


def _segments(uri: str) -> str:
    """Where the indexes of additions are; parts of vectors lie beside it, whatever the addition's number will be."""
    return f"{uri.rstrip('/')}/segments"


def forget(uri: str, ids: list[str]) -> CollectionVersion:
    """Hide passages from every search, then forget their gradients; all or none.

    Interrupted in between, the same call goes on. Raises `PassageNotFound` if one of them is neither in the collection
    nor in its bank.
    """
    with changing(uri) as version:
        here = known_ids(uri, version, ids)
        banked = sorted(set(ids) - set(unknown_ids(version.bank.uri, ids))) if version.bank else []
        # What is hidden was deleted before: by this call, perhaps, before it was interrupted.
        hidden = {passage_id for segment in version.segments for passage_id in segment.hidden}
        if unknown := sorted(set(ids) - here - hidden - set(banked)):
            raise PassageNotFound(
                f"the collection at {uri} has no passage {unknown[:5]}; nothing was deleted", passage_ids=unknown
            )
        # The index first: nothing is found whose gradient is gone.
        version = publish(uri, without(uri, version, here)) if here else version
        if version.bank is None:
            return version
        bank = delete(version.bank.uri, banked) if banked else read_manifest(Storage(version.bank.uri))
        if bank.version == version.bank.version:
            return version
        return publish(uri, _with_bank(version, bank.version))


def _build_config(bank: CollectionBank, corpus: str, changes: Sequence[str]) -> BuildConfig:
    data = {
        "meta_init": bank.meta_init,
        "corpus": corpus,
        "bank": {"uri": bank.uri, "codec": bank.codec},
        "cluster": {"workers": 1},
    }
    for change in changes:
        apply_override(data, change)
    return parse_settings(BuildConfig, data, "the settings of the addition")


def _with_bank(version: CollectionVersion, number: int) -> CollectionVersion:
    assert version.bank is not None
    return version.model_copy(update={"bank": version.bank.model_copy(update={"version": number})})
