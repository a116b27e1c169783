"""Streaming a jsonl corpus through a pool of actors: what the jobs that do so share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import fsspec
import numpy as np
import ray
from botocore.exceptions import BotoCoreError

from ray_jobs.cluster import wants_gpu
from regrad.config import WorkersConfig
from regrad.errors import CorpusError

_LINES_PER_BLOCK = 1000


def blocks_of_lines(uri: str, size: int, limit: int | None = None) -> Any:
    """A data set with one column, `line`: the corpus in its order, in blocks of `size` lines (the last is shorter).

    A block holds the same lines whatever the workers. Call it in a task (`run_task`), so that Ray Data's own output
    goes to the cluster's logs.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    files = ray.data.from_items([{"uri": uri}])
    lines = files.map_batches(_read_lines, batch_size=1, fn_kwargs={"limit": limit})
    return lines.repartition(target_num_rows_per_block=size, strict=True)


def actor_pool(workers: WorkersConfig) -> dict[str, Any]:
    """What `map_batches` needs to run a class on so many workers."""
    return {
        "compute": ray.data.ActorPoolStrategy(size=workers.workers),
        "num_cpus": _cpus_per_actor(workers),
        "num_gpus": 1 if wants_gpu(workers) else 0,
    }


def check_corpus(uri: str) -> None:
    """Raise `CorpusError` if there is nothing at `uri`."""
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        found = filesystem.exists(path)
    except (OSError, ValueError, ImportError, BotoCoreError) as error:
        raise CorpusError(f"the corpus {uri} cannot be read: {error}") from error
    if not found:
        raise CorpusError(f"the corpus {uri} does not exist")


def _read_lines(batch: dict[str, np.ndarray], limit: int | None) -> Iterator[dict[str, list[bytes]]]:
    """The lines of the files, as bytes (a line ends at a newline and nowhere else), streamed in blocks."""
    for uri in batch["uri"]:
        with fsspec.open(str(uri), "rb", compression="infer") as file:
            lines = islice((line for line in file if line.strip()), limit)
            while block := list(islice(lines, _LINES_PER_BLOCK)):
                yield {"line": block}


def _cpus_per_actor(workers: WorkersConfig) -> float:
    """As configured, but one CPU of the cluster is left to the tasks that read: without it they would never start."""
    spare: float = max(1.0, ray.cluster_resources().get("CPU", 1.0) - 1.0)
    return min(workers.cpus_per_worker, spare / workers.workers)
