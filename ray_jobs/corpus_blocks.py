"""Streaming a corpus through a pool of actors: blocks of lines on their way in, errors on their way out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from ray_jobs._ray_compat.data import cut_without_processors
from ray_jobs.cluster import gpus_of
from regrad import errors
from regrad.data.corpora import read_raw
from regrad.data.files import corpus_files
from regrad.data.jsonl import RawLine
from regrad.errors import CorpusError, RegradError, StorageError
from regrad.settings import WorkersConfig

_LINES_PER_BLOCK = 1000
_BYTES_PER_BLOCK = 16 * 1024 * 1024
_FILES_AT_ONCE = 2
_CUTS_AT_ONCE = 2
_SCHEMA = pa.schema([("line", pa.binary()), ("problem", pa.string()), ("read_bytes", pa.int64())])


def blocks_of_lines(uri: str, size: int, limit: int | None = None) -> Any:
    """A data set of the corpus in its order, in blocks of `size` rows (the last is shorter), at most `limit` in all.

    Columns: `line` (one JSON object, whatever the format), `problem` (empty, or why `line` is only the beginning of a
    bad record), `read_bytes` (of the stored corpus, for this row). Blocks do not depend on the workers. Call it in a
    task (`run_task`), so that Ray Data's own output goes to the cluster's logs.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    files = [{"uri": file.uri} for file in corpus_files(uri)]
    rows = ray.data.from_items(files, override_num_blocks=len(files)).map_batches(
        _read_files,
        batch_size=1,
        fn_kwargs={"limit": limit},
        # Neither readers nor the tasks that cut blocks take a CPU: the actors of this and of other jobs may hold all,
        # and would wait for blocks that no task can make.
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=_FILES_AT_ONCE),
    )
    rows = rows if limit is None else rows.limit(limit)
    return cut_without_processors(rows, size, _CUTS_AT_ONCE)


def actor_pool(workers: WorkersConfig) -> dict[str, Any]:
    """The arguments of `map_batches` that run a class on at most `workers.workers` actors.

    The work begins with the first of them, and each further one joins in when the cluster has room for it.
    """
    return {
        "compute": ray.data.ActorPoolStrategy(size=workers.workers),
        "num_cpus": workers.cpus_per_worker,
        "num_gpus": gpus_of(workers),
        "resources": workers.resources,
    }


def check_corpus(uri: str) -> None:
    """Raise `CorpusError` if there is nothing at `uri`, or nothing in it."""
    if not any(True for file in corpus_files(uri) for _ in read_raw(file.uri)):
        raise CorpusError(f"{uri}: the corpus is empty", code="empty", uri=uri)


def _read_files(batch: dict[str, np.ndarray], limit: int | None) -> Iterator[pa.Table]:
    """The records of the files, streamed in blocks of bounded size."""
    for uri in batch["uri"]:
        rows: list[RawLine] = []
        size = 0
        for record in islice(read_raw(str(uri)), limit):
            rows.append(record)
            size += len(record.line)
            if len(rows) == _LINES_PER_BLOCK or size > _BYTES_PER_BLOCK:
                yield _table(rows)
                rows, size = [], 0
        yield _table(rows)


def _table(rows: list[RawLine]) -> pa.Table:
    columns = [[row.line for row in rows], [row.problem for row in rows], [row.read_bytes for row in rows]]
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)], _SCHEMA)


# Ray Data reports that an actor failed, but not with which error. So errors of ours travel as data, and a job ends with
# the sentence that it would end with in one process.
def encode_error(error: RegradError | OSError) -> str:
    """The error as a line of JSON, for a row of a data set.

    A full disk or a refused connection becomes a `StorageError`, and an error of a class that `regrad.errors` does not
    have becomes one of the nearest class that it has.
    """
    if not isinstance(error, RegradError):
        place = f" ({error.filename})" if error.filename else ""
        error = StorageError(f"{error.strerror or error}{place}", code="system_error")
    kind = next(one for one in type(error).__mro__ if getattr(errors, one.__name__, None) is one)
    # Another class may take other arguments than ours does, but every one that is not special takes its text.
    arguments = list(error.args) if kind is type(error) else [str(error)]
    return json.dumps({"kind": kind.__name__, "arguments": arguments, "attributes": vars(error)}, default=str)


def decode_error(encoded: str) -> RegradError:
    """The error that `encode_error` was given, with its class, arguments, code and fields."""
    content = json.loads(encoded)
    error: RegradError = getattr(errors, content["kind"])(*content["arguments"])
    vars(error).update(content["attributes"])
    return error
