"""Meta-training in this process, without a cluster: for a notebook, or many small runs that need no second worker."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from regrad.data.passages import Passage
from regrad.data.tasks import ScannedTask, Task, duplicates, read_tasks, task_files
from regrad.errors import CorpusError, TrainingError
from regrad.meta_init import MetaInit
from regrad.models.loading import load_language_model
from regrad.training.meta.callbacks import Silent
from regrad.training.meta.checkpoint import DevScore, TrainState
from regrad.training.meta.config import MetaTrainConfig, ShapeConfig
from regrad.training.meta.lengths import Lengths, scan_file
from regrad.training.meta.optim.base import PlainEngine
from regrad.training.meta.parameters import MetaParameters
from regrad.training.meta.task_augment import shape_task
from regrad.training.meta.trainer import Trainer
from regrad.training.sampler import DrawOrder

_POOL = 2048


def meta_train_in_process(config: MetaTrainConfig, device: str = "cpu") -> MetaInit:
    """Train from start to end with plain PyTorch; nothing is written, and there are no checkpoints to go on from.

    Raises `CorpusError`, `TrainingError` or `MetaInitError` as a job does; `optimizer.epochs` needs a job.
    """
    if config.optimizer.epochs is not None:
        raise TrainingError("optimizer.epochs is for a job; give optimizer.steps")
    sources = _sources(config)
    start = MetaInit.load(config.start_from) if config.start_from else None
    lm = load_language_model(config.model, device)
    if start is not None:
        start.check_base(lm)
    engine = PlainEngine(MetaParameters(lm.subspace, config.inner, config.seed, start).to(device), config.optimizer)
    notes = {
        "tasks": [
            {"uri": source.uri, "weight": source.weight, "tasks": len(tasks)}
            for source, tasks in zip(config.tasks, sources, strict=True)
        ],
        **{"parent": start.fingerprint if start else None, "seed": config.seed, "workers": 1},
    }
    best = _Best()
    trainer = Trainer(lm, engine, config, lm.identity(), notes, listener=best)
    state = trainer.run(steps_of(sources, config), read_tasks(config.dev) if config.dev else ())
    last = trainer.meta_init(state)
    return best.meta_init or last if config.scoring.select == "best" else last


class _Best(Silent):
    """Keeps the checkpoint with the best dev F1."""

    def __init__(self) -> None:
        self.meta_init: MetaInit | None = None
        self._score: DevScore | None = None

    def checkpoint(self, state: TrainState, tensors: dict[str, Tensor], meta_init: MetaInit) -> None:
        """See `Listener`."""
        dev = state.latest_dev
        if dev is not None and (self._score is None or dev.f1 > self._score.f1):
            self.meta_init, self._score = meta_init, dev


def _sources(config: MetaTrainConfig) -> list[list[Task]]:
    """The tasks of each source; the first bad one is an error, unless they are to be skipped."""
    lengths = Lengths.of(config.model)
    scanned = [list(_scanned(source.uri, lengths, config.shape)) for source in config.tasks]
    again = duplicates([(item.where, item.task.id) for items in scanned for item in items if item.task])
    for problem in again.values():
        if config.shape.bad_tasks == "fail":
            raise CorpusError(problem)
    found = [[item.task for item in items if item.task and item.where not in again] for items in scanned]
    for source, tasks in zip(config.tasks, found, strict=True):
        if not tasks:
            raise CorpusError(f"{source.uri} holds no tasks")
    return found


def _scanned(uri: str, lengths: Lengths, shape: ShapeConfig) -> Iterator[ScannedTask]:
    for file in task_files(uri):
        for item in scan_file(file, lengths, shape):
            if item.task is None and shape.bad_tasks == "fail":
                raise CorpusError(item.problem)
            yield item


def steps_of(sources: Sequence[Sequence[Task]], config: MetaTrainConfig) -> Iterator[list[Task]]:
    """The tasks of every step, drawn from the sources in the order that a job draws them in."""
    order = DrawOrder([len(tasks) for tasks in sources], [source.weight for source in config.tasks], config.seed)
    size, pool = config.optimizer.batch_size, _pool(sources, config)
    batch: list[Task] = []
    for position, (source, number) in enumerate(order.draws(config.optimizer.steps * size)):
        batch.append(shape_task(sources[source][number], config.shape, pool, config.seed, position))
        if len(batch) == size:
            yield batch
            batch = []


def _pool(sources: Sequence[Sequence[Task]], config: MetaTrainConfig) -> list[Passage]:
    """Passages to draw distractors from."""
    if not config.shape.distractor_probability:
        return []
    tasks: list[Any] = [task for source in sources for task in source]
    chosen = random.Random(f"{config.seed}/pool").sample(tasks, min(_POOL, len(tasks)))
    return list(dict.fromkeys(task.passages[0] for task in chosen))
