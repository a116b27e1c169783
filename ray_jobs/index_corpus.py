"""Job: index a corpus. Vectors are made by a pool of workers (`embedding.py`), every other kind by one on some node.

ray job submit -- python -m ray_jobs.index_corpus --config configs/jobs/index-lab.yaml
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray_jobs.cluster import cluster, job_main, require_workers, run_task
from ray_jobs.lexical_shards import build_shards
from ray_jobs.progress import progress_channel
from ray_jobs.waiting import ONE_CPU, wait_for_room
from regrad.data.corpora import read_passages
from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval.base import CARD, kind_of, read_index_card
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.config import IndexConfig
from regrad.retrieval.fused import fuse_indexes
from regrad.storage import Storage, parts_uri

_REPORT_EVERY = 10_000


def run(config: IndexConfig) -> str:
    """Index the corpus; returns one line saying what was made and where."""
    if Storage(config.output).exists(CARD) and kind_of(read_index_card(config.output)).CHANGES:
        text = f"there is a collection at {config.output}, with all that was added to it; name another output"
        raise RetrievalError(text, code="exists", uri=config.output)
    if config.corpus is not None:
        next(read_passages(config.corpus), None)
    if config.dense is not None:
        # Here, since only this kind needs the library of encoders, which is an extra.
        from ray_jobs.embedding import embed_corpus

        count = embed_corpus(config)
    else:
        with cluster(), progress_channel() as progress:
            if config.shards > 1:
                require_workers(config.cluster)
                wait_for_room(config.cluster.model_copy(update={"gpu": False}))
                count = run_task(build_shards, config, progress)
                Storage(parts_uri(config.output)).remove()
            else:
                wait_for_room(ONE_CPU)
                count = run_task(_index, config, progress, num_cpus=1)
    card = read_index_card(config.output)
    how = kind_of(card).how_searched(config.output)
    return f"{card.kind.upper()} index at {config.output}: {count} passages{f', searched by {how}' if how else ''}"


def _index(config: IndexConfig, progress: Any) -> int:
    if config.fuse is not None:
        return fuse_indexes(config.fuse, config.output)
    if config.rerank is not None:
        # Here, as in `run`: what needs the library of encoders.
        from regrad.retrieval.reranked import rerank_index

        return rerank_index(config.rerank, config.output)
    assert config.corpus is not None  # or `fuse` would not be None
    passages = _counted(read_passages(config.corpus), progress)
    return build_index(passages, config.output, config.threads, config.fields, config.language)


def _counted(passages: Iterator[Passage], progress: Any) -> Iterator[Passage]:
    count = 0
    for count, passage in enumerate(passages, start=1):
        if count % _REPORT_EVERY == 0:
            progress.push.remote(f"{count} passages")
        yield passage
    progress.push.remote(f"{count} passages read")


if __name__ == "__main__":
    job_main(IndexConfig, run, __doc__ or "")
