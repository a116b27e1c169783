"""Streaming a corpus through a pool of actors: what the jobs that do so share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from ray_jobs.cluster import wants_gpu
from regrad.data.corpora import read_raw
from regrad.data.files import corpus_files
from regrad.data.jsonl import RawLine
from regrad.errors import CorpusError
from regrad.settings import WorkersConfig

_LINES_PER_BLOCK = 1000
_BYTES_PER_BLOCK = 16 * 1024 * 1024
_FILES_AT_ONCE = 2
_SCHEMA = pa.schema([("line", pa.binary()), ("problem", pa.string()), ("read_bytes", pa.int64())])


def blocks_of_lines(uri: str, size: int, limit: int | None = None) -> Any:
    """A data set of the corpus in its order, in blocks of `size` rows (the last is shorter), at most `limit` in all.

    Columns: `line` (one JSON object, whatever the format), `problem` (empty, or why `line` is only the beginning of
    something that is no record), `read_bytes` (of the corpus as it is stored, for this row). A block holds the same
    rows whatever the workers. Call it in a task (`run_task`), so that Ray Data's own output goes to the cluster's logs.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    files = [{"uri": file.uri} for file in corpus_files(uri)]
    rows = ray.data.from_items(files, override_num_blocks=len(files)).map_batches(
        _read_files,
        batch_size=1,
        fn_kwargs={"limit": limit},
        # The one CPU that the actors leave belongs to the tasks that cut blocks: readers beside them, which wait
        # most of the time, must not hold it.
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=_FILES_AT_ONCE),
    )
    rows = rows if limit is None else rows.limit(limit)
    return rows.repartition(target_num_rows_per_block=size, strict=True)


def actor_pool(workers: WorkersConfig) -> dict[str, Any]:
    """What `map_batches` needs to run a class on so many workers."""
    return {
        "compute": ray.data.ActorPoolStrategy(size=workers.workers),
        "num_cpus": _cpus_per_actor(workers),
        "num_gpus": 1 if wants_gpu(workers) else 0,
    }


def check_corpus(uri: str) -> None:
    """Raise `CorpusError` if there is nothing at `uri`, or nothing in it."""
    if not any(True for file in corpus_files(uri) for _ in read_raw(file.uri)):
        raise CorpusError(f"{uri}: the corpus is empty")


def _read_files(batch: dict[str, np.ndarray], limit: int | None) -> Iterator[pa.Table]:
    """The records of the files, streamed in blocks of bounded size."""
    for uri in batch["uri"]:
        yield from _tables(islice(read_raw(str(uri)), limit))


def _tables(records: Iterable[RawLine]) -> Iterator[pa.Table]:
    rows: list[RawLine] = []
    size = 0
    for record in records:
        rows.append(record)
        size += len(record.line)
        if len(rows) == _LINES_PER_BLOCK or size > _BYTES_PER_BLOCK:
            yield _table(rows)
            rows, size = [], 0
    yield _table(rows)


def _table(rows: list[RawLine]) -> pa.Table:
    columns = zip(*((row.line, row.problem, row.read_bytes) for row in rows), strict=True) if rows else ([], [], [])
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)], _SCHEMA)


def _cpus_per_actor(workers: WorkersConfig) -> float:
    """As configured, but one CPU of the cluster is left to the tasks that read: without it they would never start."""
    spare: float = max(1.0, ray.cluster_resources().get("CPU", 1.0) - 1.0)
    return min(workers.cpus_per_worker, spare / workers.workers)
