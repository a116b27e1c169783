"""Add passages to a collection: to its indexes and to its bank, as one version."""

from __future__ import annotations

from ray_jobs.build_bank import Built, build
from ray_jobs.cluster import cluster, run_task
from regrad.bank.config import BankConfig, BuildConfig
from regrad.bank.maintenance import delete, unknown_ids
from regrad.data.corpora import read_passages
from regrad.errors import PassageNotFound
from regrad.retrieval.collection import CollectionBank, CollectionVersion
from regrad.retrieval.collection_changes import changing, known_ids, publish, with_segment, without, write_segment
from regrad.settings import WorkersConfig


def add(uri: str, corpus: str, workers: WorkersConfig) -> tuple[CollectionVersion, Built | None]:
    """Index the passages of a corpus and compute their gradients; a version that has both is in force at the end.

    Passages with the ids of older ones take their places. Interrupted before the end, nothing is found that was not
    found before, and the same call computes no gradient again. Raises `RetrievalError`, `CorpusError` or `BankError`.
    """
    with changing(uri) as version:
        with cluster():
            segment = run_task(write_segment, uri, version, lambda: read_passages(corpus), num_cpus=1)
        built = None
        if bank := version.bank:
            # The gradients first: whatever is found has one.
            built = build(_build_config(bank, corpus, workers), add=True)
            version = _with_bank(version, built.manifest.version)
        ids = (passage.id for passage in read_passages(corpus))
        return publish(uri, with_segment(uri, version, segment, ids)), built


def forget(uri: str, ids: list[str]) -> CollectionVersion:
    """Hide passages from every search, then forget their gradients; all or none.

    Interrupted in between, the same call goes on. Raises `PassageNotFound` if one of them is neither in the collection
    nor in its bank.
    """
    with changing(uri) as version:
        here = known_ids(uri, version, ids)
        banked = sorted(set(ids) - set(unknown_ids(version.bank.uri, ids))) if version.bank else []
        if unknown := sorted(set(ids) - here - set(banked)):
            raise PassageNotFound(
                f"the collection at {uri} has no passage {unknown[:5]}; nothing was deleted", passage_ids=unknown
            )
        # The index first: nothing is found whose gradient is gone.
        version = publish(uri, without(uri, version, here)) if here else version
        if version.bank and banked:
            version = publish(uri, _with_bank(version, delete(version.bank.uri, banked).version))
        return version


def _build_config(bank: CollectionBank, corpus: str, workers: WorkersConfig) -> BuildConfig:
    settings = {"uri": bank.uri, "codec": bank.codec}
    return BuildConfig(
        meta_init=bank.meta_init, corpus=corpus, bank=BankConfig.model_validate(settings), cluster=workers
    )


def _with_bank(version: CollectionVersion, number: int) -> CollectionVersion:
    assert version.bank is not None
    return version.model_copy(update={"bank": version.bank.model_copy(update={"version": number})})
