"""Job: meta-train with Ray Train's TorchTrainer and DeepSpeed; the result is a MetaInit directory.

ray job submit -- python -m ray_jobs.meta_train --config configs/jobs/train-lab.yaml
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import train
from ray.train import DataConfig, Result

from ray_jobs.cluster import cluster, require_workers
from ray_jobs.entry import main
from ray_jobs.progress import progress_channel
from ray_jobs.reporter import WorkerReporter
from ray_jobs.task_stream import TaskStream, in_order, open_stream, worker_steps
from ray_jobs.train_runner import RunDirectory, fit_until_done, run_directory, scaling, trainer_class
from regrad.data.tasks import read_tasks, task_files
from regrad.errors import TrainingError
from regrad.meta_init import CARD, MetaInit
from regrad.models.loading import load_language_model
from regrad.storage import check_replaceable
from regrad.training.meta.callbacks import StepReport
from regrad.training.meta.checkpoint import META_INIT, DevScore, TrainState, load_checkpoint, save_checkpoint
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.meta.lengths import Lengths, check_dev_tasks
from regrad.training.meta.optim import make_engine
from regrad.training.meta.parameters import MetaParameters
from regrad.training.meta.trackers import Watcher, make_sinks
from regrad.training.meta.trainer import Trainer, check_shares

logger = logging.getLogger(__name__)


def run(config: MetaTrainConfig) -> str:
    """Train, or go on with an unfinished run, and write `config.output`; returns one line about it."""
    check_shares(config, config.cluster.workers)
    check_replaceable(config.output, CARD)
    lengths = Lengths.of(config.model)
    for source in config.tasks:
        task_files(source.uri)
    dev = check_dev_tasks(config.dev, lengths, config.shape, config.scoring.max_new_tokens) if config.dev else None
    parent = MetaInit.load(config.start_from).fingerprint if config.start_from else None
    with cluster():
        require_workers(config.cluster)
        stream = open_stream(config)
        config = stream.config
        notes = {"tasks": stream.summary, "parent": parent, "seed": config.seed, "workers": config.cluster.workers}
        data = {"tasks": stream.digest, "dev": dev, "parent": parent}
        with run_directory(config, data) as place, _watching(config) as progress:
            meta_init = _chosen(_train(config, stream, place, notes, progress), config)
            meta_init.save(config.output)
            place.remove()
    return _describe(meta_init, config)


def _describe(meta_init: MetaInit, config: MetaTrainConfig) -> str:
    notes = meta_init.notes
    dev = next((score for score in notes["dev"] if score["step"] == notes["steps"]), None)
    scored = f", dev EM {dev['exact_match']:.3f}, F1 {dev['f1']:.3f}" if dev else ""
    skipped = f", {notes['skipped_steps']} skipped" if notes["skipped_steps"] else ""
    return f"MetaInit {meta_init.fingerprint} at {config.output}: {notes['steps']} steps{skipped}{scored}"


@contextmanager
def _watching(config: MetaTrainConfig) -> Iterator[Any]:
    """Lines on the log, numbers to the configured trackers; gives workers the handle to push to."""
    with closing(Watcher(logger.info, make_sinks(config))) as watcher, progress_channel(watcher) as progress:
        yield progress


def _train(
    config: MetaTrainConfig, stream: TaskStream, place: RunDirectory, notes: dict[str, Any], progress: Any
) -> Result:
    settings = {"config": config.model_dump(mode="json"), "notes": notes, "progress": progress}
    make_trainer = partial(
        trainer_class(),
        _worker,
        train_loop_config=settings,
        scaling_config=scaling(config.cluster),
        run_config=place.run_config(),
        datasets={"tasks": stream.draws},
        dataset_config=DataConfig(datasets_to_split=[], execution_options=in_order()),
    )
    return fit_until_done(make_trainer, place, config.checkpoints.max_failures, "meta-training")


def _chosen(result: Result, config: MetaTrainConfig) -> MetaInit:
    """The best checkpoint by dev F1, or the last."""
    checkpoint = result.checkpoint
    scored = [(c, m["dev_f1"]) for c, m in result.best_checkpoints or [] if m.get("dev_f1") is not None]
    if config.scoring.select == "best" and scored:
        checkpoint = max(scored, key=lambda item: item[1])[0]
    if checkpoint is None:
        raise TrainingError(f"meta-training made no checkpoint: {result.error}")
    with checkpoint.as_directory() as folder:
        return MetaInit.load(Path(folder) / META_INIT)


class _Reporter(WorkerReporter):
    """A `Listener` of meta-training."""

    def note(self, text: str) -> None:
        self.tell(text)

    def report(self, report: StepReport) -> None:
        self.tell(report)

    def scored(self, dev: DevScore) -> None:
        self.tell(dev)

    def checkpoint(self, state: TrainState, tensors: dict[str, torch.Tensor], meta_init: MetaInit) -> None:
        dev = state.latest_dev
        metrics = {"step": state.step} | ({"dev_f1": dev.f1} if dev else {})
        self.keep(metrics, lambda folder: save_checkpoint(folder, state, tensors, meta_init))


def _worker(settings: dict[str, Any]) -> None:
    config = MetaTrainConfig.model_validate(settings["config"])
    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    lm = load_language_model(config.model, train.torch.get_device())
    identity = lm.identity()
    start = MetaInit.load(config.start_from) if config.start_from else None
    if start is not None:
        start.check_base(lm)
    engine = make_engine(
        lm, MetaParameters(lm.subspace, config.inner, config.seed, start).to(lm.device), config.optimizer
    )
    state = TrainState()
    if checkpoint := train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state, tensors = load_checkpoint(Path(folder), identity)
        engine.load(tensors)
    reporter = _Reporter(settings["progress"])
    here = context.get_local_world_size()
    trainer = Trainer(lm, engine, config, identity, settings["notes"], rank, world_size, reporter, here)
    steps = worker_steps(train.get_dataset_shard("tasks"), config, state.step, rank, world_size)
    trainer.run(steps, read_tasks(config.dev) if config.dev else (), state)


if __name__ == "__main__":
    main(MetaTrainConfig, run, __doc__ or "")
