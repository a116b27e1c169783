"""Training tasks through Ray Data: `regrad.training.meta.task_plan` with scanning and placing distributed.

Every worker reads the same sorted stream and takes its share of each batch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.data

from regrad.data.tasks import Task
from regrad.errors import TrainingError
from regrad.models.config import ModelConfig
from regrad.training.meta.config import MetaTrainConfig, ShapeConfig
from regrad.training.meta.task_plan import Lengths, TaskHead, TaskKey, TaskPlan, files_of, plan_tasks, pool_of, scan
from regrad.training.workers import Workers

_ROWS_PER_BLOCK = 256
_HEAD = ("file", "number", "place", "id", "content", "problem")


@dataclass(frozen=True)
class TaskStream:
    """The dataset of all draws in order, and their plan, in whose settings the number of steps is known."""

    draws: Any
    plan: TaskPlan


def open_stream(config: MetaTrainConfig) -> TaskStream:
    """Check all tasks and lay out the draws; raises `CorpusError` for bad tasks, unless the settings skip them."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    files = files_of(config)
    scanned = _scanned(config, [uri for _, uri in files])
    rows = scanned.select_columns(list(_HEAD)).take_all()
    heads = [TaskHead(_key(row), row["place"], row["id"], row["content"], row["problem"]) for row in rows]
    plan = plan_tasks(config, files, heads)
    return TaskStream(_lay_out(plan, scanned), plan)


def worker_steps(shard: Any, config: MetaTrainConfig, first: int, workers: Workers) -> Iterator[list[Task]]:
    """This worker's tasks of every step from `first` on, from the stream that all workers read."""
    size = config.optimizer.batch_size
    for step, batch in enumerate(shard.iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=2)):
        if step < first:
            continue
        if batch["position"].tolist() != list(range(step * size, (step + 1) * size)):
            raise TrainingError(
                f"the tasks of step {step + 1} arrived out of order", code="out_of_order", step=step + 1
            )
        yield [Task.from_record(json.loads(text)) for text in workers.share(batch["task"].tolist())]


def _key(row: Any) -> TaskKey:
    return TaskKey(int(row["file"]), int(row["number"]))


def _scanned(config: MetaTrainConfig, files: Sequence[str]) -> Any:
    """One row for each record: its head, and its task as JSON."""
    items = [{"file": number, "uri": uri} for number, uri in enumerate(files)]
    settings = {"model": config.model, "shape": config.shape}
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.map_batches(_scan, batch_size=1, fn_kwargs=settings).materialize()


def _scan(batch: dict[str, np.ndarray], model: ModelConfig, shape: ShapeConfig) -> Iterator[dict[str, Any]]:
    lengths = Lengths.of(model)
    for file, uri in zip(batch["file"].tolist(), batch["uri"].tolist(), strict=True):
        rows: list[tuple[Any, ...]] = []
        for head, task in scan(file, str(uri), lengths, shape):
            rows.append((*head.key, *head[1:], json.dumps(task.to_record()) if task else ""))
            if len(rows) == _ROWS_PER_BLOCK:
                yield _columns(rows)
                rows = []
        yield _columns(rows)


def _columns(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    names = (*_HEAD, "task")
    kinds = (np.int64, np.int64, *[object] * 5)
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return {name: np.array(column, kind) for name, kind, column in zip(names, kinds, columns, strict=True)}


def _lay_out(plan: TaskPlan, scanned: Any) -> Any:
    """One row for each draw, sorted by position: the position, and the task shaped for it."""
    positions: dict[TaskKey, list[int]] = {}
    for draws in plan.steps():
        for position, key in draws:
            positions.setdefault(key, []).append(position)
    chosen = set(plan.pool_keys())
    rows = scanned.filter(lambda row: _key(row) in chosen).take_all() if chosen else []
    pool = pool_of([Task.from_record(json.loads(row["task"])) for row in sorted(rows, key=_key)])
    # In the object store once, instead of pickled into each of the tasks that place.
    shared = {"shared": ray.put((plan, positions, pool))}
    return scanned.map_batches(_place, fn_kwargs=shared).sort("position").materialize()


def _place(batch: dict[str, np.ndarray], shared: Any) -> dict[str, np.ndarray]:
    plan, positions, pool = ray.get(shared)
    placed: list[tuple[int, str]] = []
    for file, number, text in zip(batch["file"].tolist(), batch["number"].tolist(), batch["task"], strict=True):
        for position in positions.get(TaskKey(file, number), ()):
            task = Task.from_record(json.loads(text))
            placed.append((position, json.dumps(plan.place(task, position, pool).to_record())))
    return {
        "position": np.array([position for position, _ in placed], dtype=np.int64),
        "task": np.array([text for _, text in placed], dtype=object),
    }
