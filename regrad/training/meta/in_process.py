"""Meta-training in this process: the job with one worker and no cluster, for a notebook or many small runs."""

from __future__ import annotations

from regrad.meta_init import MetaInit
from regrad.training.callbacks import Best
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.meta.task_files import read_tasks
from regrad.training.meta.task_plan import TasksInMemory
from regrad.training.meta.trainer import train_worker


def meta_train_in_process(config: MetaTrainConfig, device: str = "cpu") -> MetaInit:
    """Train from start to end with plain PyTorch; nothing is written, and there are no checkpoints to go on from.

    Raises `CorpusError`, `TrainingError` or `MetaInitError` as a job does.
    """
    tasks = TasksInMemory.read(config)
    plain = tasks.plan.config.optimizer.model_copy(update={"zero_stage": None})
    config = tasks.plan.config.model_copy(update={"optimizer": plain})
    parent = MetaInit.load(config.start_from).fingerprint if config.start_from else None
    notes = {"tasks": tasks.plan.summary, "parent": parent, "seed": config.seed, "workers": 1}
    best = Best("f1")
    dev = read_tasks(config.dev) if config.dev else ()
    last = train_worker(config, tasks.steps, dev, notes, best, device)
    return best.product if config.scoring.select == "best" and isinstance(best.product, MetaInit) else last
