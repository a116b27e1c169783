"""A lexical index by several tasks, each of which builds a shard of it with a Lucene of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from ray_jobs.cluster import cause_of
from regrad.data.corpora import read_passages
from regrad.retrieval.bm25 import Shard, build_shard, build_sharded_index
from regrad.retrieval.config import IndexConfig
from regrad.storage import parts_uri


def build_shards(config: IndexConfig, progress: Any) -> int:
    """Make the index; returns how many passages it has. Call it in a task.

    Shards lie beside the output until the index is whole: a run that was stopped builds only those that are missing.
    """
    assert config.corpus is not None

    def build(shards: Sequence[Shard]) -> list[str]:
        return _build_all(config, shards, progress)

    how = (config.fields, config.language)
    return build_sharded_index(read_passages(config.corpus), config.output, config.shards, build, *how)


def _build_all(config: IndexConfig, shards: Sequence[Shard], progress: Any) -> list[str]:
    """The addresses of the shards, of which at most `cluster.workers` are built at once."""
    workers = config.cluster
    task = ray.remote(num_cpus=workers.cpus_per_worker, resources=workers.resources)(_build)
    waiting = list(enumerate(shards))
    running: dict[ray.ObjectRef, int] = {}
    places: dict[int, str] = {}
    while waiting or running:
        while waiting and len(running) < workers.workers:
            number, shard = waiting.pop(0)
            running[task.remote(config, shard)] = number
        (done,), _ = ray.wait(list(running), num_returns=1)
        try:
            places[running.pop(done)] = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise cause_of(error) from None
        progress.push.remote(f"{len(places)} of {len(shards)} shards")
    return [places[number] for number in range(len(shards))]


def _build(config: IndexConfig, shard: Shard) -> str:
    assert config.corpus is not None
    how = (config.threads, config.fields, config.language)
    return build_shard(read_passages(config.corpus), shard, parts_uri(config.output), *how)
