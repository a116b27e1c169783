"""Add passages to a collection: to its indexes and to its bank, as one version."""

from __future__ import annotations

from collections.abc import Sequence

from ray_jobs.build_bank import Built, build
from ray_jobs.cluster import cluster, run_task
from regrad.bank.config import BuildConfig
from regrad.bank.format import read_manifest
from regrad.bank.maintenance import delete, unknown_ids
from regrad.data.corpora import read_passages
from regrad.errors import PassageNotFound
from regrad.retrieval.collection import CollectionBank, CollectionVersion
from regrad.retrieval.collection_changes import changing, known_ids, publish, with_segment, without, write_segment
from regrad.settings import apply_override, parse_settings
from regrad.storage import Storage

_ANY_BANK = CollectionBank(uri="bank", meta_init="meta-init", codec="bf16", version=1)


def add(uri: str, corpus: str, changes: Sequence[str] = ()) -> tuple[CollectionVersion, Built | None]:
    """Index the passages of a corpus and compute their gradients; then a version that has both is in force.

    Passages with the ids of older ones take their places. `changes` are overrides of the settings of `regrad build`.
    The bank's new version comes first, so whatever is found has its gradient; until the indexes follow, a replaced
    passage is found with its older text, whose gradient is missing. Interrupted before the end, nothing is found that
    was not found before, and the same call computes no gradient again. Raises `RetrievalError`, `CorpusError` or
    `BankError`.
    """
    _build_config(_ANY_BANK, corpus, changes)  # a wrong setting is told before anything is read
    with changing(uri) as version:
        with cluster():
            segment = run_task(write_segment, uri, version, lambda: read_passages(corpus), num_cpus=1)
        built = None
        if bank := version.bank:
            # The gradients first: whatever is found has one.
            built = build(_build_config(bank, corpus, changes), add=True)
            version = _with_bank(version, built.manifest.version)
        return publish(uri, with_segment(uri, version, segment)), built


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
