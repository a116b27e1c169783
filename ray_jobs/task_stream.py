"""Training tasks through Ray Data: files are read and checked in parallel, then put in the order of the draws.

Every worker reads the same sorted stream and takes its share of each batch: seed and step alone fix the order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from regrad.data.passages import Passage
from regrad.data.tasks import ScannedTask, Task, duplicates, task_files
from regrad.errors import CorpusError, TrainingError
from regrad.training.meta.config import MetaTrainConfig, ShapeConfig
from regrad.training.meta.lengths import Lengths, scan_file
from regrad.training.meta.task_augment import shape_task
from regrad.training.sampler import DrawOrder

logger = logging.getLogger(__name__)

_ROWS_PER_BLOCK = 256
_POOL = 2048
_SHOWN = 5

Key = tuple[int, int]
"""A record: number of its file, number in the file."""


@dataclass(frozen=True)
class TaskStream:
    """The dataset of all draws in order, what is recorded about the data, and the settings with the number of steps."""

    draws: Any
    config: MetaTrainConfig
    summary: list[dict[str, Any]]
    digest: str


def open_stream(config: MetaTrainConfig) -> TaskStream:
    """Check all tasks and lay out the draws; raises `CorpusError` for bad tasks, unless they are to be skipped."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    files = [(number, uri) for number, source in enumerate(config.tasks) for uri in task_files(source.uri)]
    scanned = _scan(config, [uri for _, uri in files])
    good = _good(config, scanned, [uri for _, uri in files])
    sources = [[key for key in good if files[key[0]][0] == number] for number in range(len(config.tasks))]
    for source, keys in zip(config.tasks, sources, strict=True):
        if not keys:
            raise CorpusError(f"{source.uri} holds no tasks")
    summary = [
        {"uri": source.uri, "weight": source.weight, "tasks": len(keys)}
        for source, keys in zip(config.tasks, sources, strict=True)
    ]
    digest = _hash(json.dumps([good[key] for key in sorted(good)]))
    config = _with_steps(config, sum(len(keys) for keys in sources))
    return TaskStream(_lay_out(config, scanned, sources), config, summary, digest)


def _with_steps(config: MetaTrainConfig, tasks: int) -> MetaTrainConfig:
    if config.optimizer.epochs is None:
        return config
    steps = math.ceil(config.optimizer.epochs * tasks / config.optimizer.batch_size)
    logger.info("%g epochs of %d tasks: %d steps", config.optimizer.epochs, tasks, steps)
    optimizer = config.optimizer.model_copy(update={"steps": max(1, steps)})
    return config.model_copy(update={"optimizer": optimizer})


def in_order() -> ray.data.ExecutionOptions:
    """For Ray Train: the workers read the stream as it was sorted."""
    return ray.data.ExecutionOptions(preserve_order=True)


def worker_steps(shard: Any, config: MetaTrainConfig, start: int, rank: int, world_size: int) -> Iterator[list[Task]]:
    """This worker's tasks of every step from `start` on, from the stream that all workers read."""
    size = config.optimizer.batch_size
    for step, batch in enumerate(shard.iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=2)):
        if step < start:
            continue
        if batch["position"].tolist() != list(range(step * size, (step + 1) * size)):
            raise TrainingError(f"the tasks of step {step + 1} arrived out of order")
        mine = batch["task"].tolist()[rank::world_size]
        yield [Task.from_record(json.loads(text)) for text in mine]


def _scan(config: MetaTrainConfig, files: Sequence[str]) -> Any:
    """One row a record: file, number, place, id, hash of the content, problem, task (JSON)."""
    items = [{"file": number, "uri": uri} for number, uri in enumerate(files)]
    settings = {"model": config.model, "shape": config.shape}
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.map_batches(_scan_files, batch_size=1, fn_kwargs=settings).materialize()


def _scan_files(batch: dict[str, np.ndarray], model: Any, shape: Any) -> Iterator[dict[str, Any]]:
    lengths = Lengths.of(model)
    for file, uri in zip(batch["file"].tolist(), batch["uri"].tolist(), strict=True):
        rows: list[tuple[Any, ...]] = []
        for number, item in enumerate(_scan_file(str(uri), lengths, shape)):
            task = json.dumps(item.task.to_record()) if item.task else ""
            identifier, content = (item.task.id, _hash(task)) if item.task else ("", "")
            rows.append((file, number, item.where, identifier, content, item.problem, task))
            if len(rows) == _ROWS_PER_BLOCK:
                yield _columns(rows)
                rows = []
        yield _columns(rows)


def _scan_file(uri: str, lengths: Lengths, shape: ShapeConfig) -> Iterator[ScannedTask]:
    """A file that cannot be read becomes a record whose place is the file: an error would lose its words on the way."""
    try:
        yield from scan_file(uri, lengths, shape)
    except CorpusError as error:
        yield ScannedTask(uri, None, str(error))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _columns(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    names = ("file", "number", "place", "id", "content", "problem", "task")
    kinds = (np.int64, np.int64, *[object] * 5)
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return {name: np.array(column, kind) for name, kind, column in zip(names, kinds, columns, strict=True)}


def _good(config: MetaTrainConfig, scanned: Any, files: Sequence[str]) -> dict[Key, str]:
    """Hashes of the good tasks by key; the bad ones are counted and shown, or fatal."""
    rows = scanned.select_columns(["file", "number", "place", "id", "content", "problem"]).take_all()
    rows.sort(key=lambda row: (row["file"], row["number"]))
    problems = {row["place"]: row["problem"] for row in rows if row["problem"]}
    for uri in files:
        if uri in problems:
            raise CorpusError(problems[uri])
    problems |= duplicates([(row["place"], row["id"]) for row in rows if not row["problem"]])
    if problems and config.shape.bad_tasks == "fail":
        more = f" (and {len(problems) - 1} more; shape.bad_tasks=skip leaves them out)" if len(problems) > 1 else ""
        raise CorpusError(next(iter(problems.values())) + more)
    for problem in list(problems.values())[:_SHOWN]:
        logger.warning("skipped: %s", problem)
    if problems:
        logger.warning("%d of %d tasks are skipped", len(problems), len(rows))
    return {(row["file"], row["number"]): row["content"] for row in rows if row["place"] not in problems}


def _lay_out(config: MetaTrainConfig, scanned: Any, sources: list[list[Key]]) -> Any:
    """One row a draw, sorted: position, task as that draw sees it."""
    order = DrawOrder([len(keys) for keys in sources], [source.weight for source in config.tasks], config.seed)
    positions: dict[Key, list[int]] = {}
    for position, (source, number) in enumerate(order.draws(config.optimizer.steps * config.optimizer.batch_size)):
        positions.setdefault(sources[source][number], []).append(position)
    settings = {"plan": ray.put((positions, _pool(config, scanned, sources))), "config": config}
    return scanned.map_batches(_place, fn_kwargs=settings).sort("position").materialize()


def _place(batch: dict[str, np.ndarray], plan: Any, config: MetaTrainConfig) -> dict[str, np.ndarray]:
    positions, pool = ray.get(plan)
    placed: list[tuple[int, str]] = []
    for file, number, text in zip(batch["file"].tolist(), batch["number"].tolist(), batch["task"], strict=True):
        for position in positions.get((file, number), ()):
            task = Task.from_record(json.loads(text))
            shaped = shape_task(task, config.shape, pool, config.seed, position)
            placed.append((position, json.dumps(shaped.to_record())))
    return {
        "position": np.array([position for position, _ in placed], dtype=np.int64),
        "task": np.array([text for _, text in placed], dtype=object),
    }


def _pool(config: MetaTrainConfig, scanned: Any, sources: list[list[Key]]) -> list[Passage]:
    """Passages to draw distractors from: one each of up to 2048 tasks, chosen by the seed."""
    if not config.shape.distractor_probability:
        return []
    keys = sorted(key for keys in sources for key in keys)
    chosen = set(random.Random(f"{config.seed}/pool").sample(keys, min(_POOL, len(keys))))
    rows = scanned.filter(lambda row: (row["file"], row["number"]) in chosen).take_all()
    rows.sort(key=lambda row: (row["file"], row["number"]))
    return list(dict.fromkeys(Task.from_record(json.loads(row["task"])).passages[0] for row in rows))
