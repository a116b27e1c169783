"""Job: meta-train with Ray Train's TorchTrainer and DeepSpeed; the result is a MetaInit directory.

ray job submit -- python -m ray_jobs.meta_train --config configs/jobs/train-lab.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train import DataConfig, Result

from ray_jobs.cluster import cluster, job_main, require_workers
from ray_jobs.run_settings import finished_line, is_finished, note_finished
from ray_jobs.task_stream import open_stream, worker_steps
from ray_jobs.train_runner import (
    WorkerReporter,
    checkpoint_of,
    checkpoint_to_resume,
    fit_until_done,
    run_directory,
    watching,
    workers_of_run,
)
from regrad.meta_init import CARD, MetaInit
from regrad.storage import check_replaceable
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.meta.reading import NONE, OTHER, RIGHT
from regrad.training.meta.task_plan import Lengths, check_dev_tasks, files_of
from regrad.training.meta.trainer import META_INIT, load_start, meta_train_worker
from regrad.training.workers import Workers


def run(config: MetaTrainConfig, replaces: bool = False) -> str:
    """Train, or resume an unfinished run, and write `config.output`; returns one line about it.

    A finished result of the same settings is left as it is. Raises `TrainingError` for one of others, unless this one
    `replaces` it.
    """
    Workers(count=config.cluster.workers).check(config.optimizer.batch_size)
    check_replaceable(config.output, CARD)
    lengths = Lengths.of(config.model)
    files_of(config)
    dev = [check_dev_tasks(uri, lengths, config.shape, config.scoring.max_new_tokens) for uri in config.dev]
    start = load_start(config)
    parent = start.fingerprint if start else None
    with cluster(*(["deepspeed"] if config.optimizer.zero_stage is not None else [])):
        require_workers(config.cluster)
        stream = open_stream(config)
        config = stream.plan.config
        notes = {"tasks": stream.plan.summary, "parent": parent, "seed": config.seed, "workers": config.cluster.workers}
        data = {"tasks": stream.plan.digest, "dev": [one.digest for one in dev], "parent": parent}
        if is_finished(config, data, replaces):
            return finished_line(_describe(MetaInit.load(config.output), config))
        best_by = "dev_f1" if config.dev else None
        with run_directory(config, data, best_by) as place, watching(config) as progress:
            result = fit_until_done(
                _worker,
                {"config": config.model_dump(mode="json"), "dev": dev, "notes": notes, "progress": progress},
                config,
                place,
                "meta-training",
                "lower optimizer.micro_batch or use fewer workers (cluster.workers); least is needed by a new run with "
                "strategy.name=difference",
                datasets={"tasks": stream.draws},
                # Not split: every worker reads the whole stream in order, and takes its share of each batch.
                dataset_config=DataConfig(
                    datasets_to_split=[], execution_options=ray.data.ExecutionOptions(preserve_order=True)
                ),
            )
            meta_init = _chosen(result, config)
            meta_init.save(config.output)
            note_finished(config, data)
            place.remove()
    return _describe(meta_init, config)


def _describe(meta_init: MetaInit, config: MetaTrainConfig) -> str:
    notes = meta_init.notes
    dev = next((score for score in notes["dev"] if score["step"] == notes["steps"]), None)
    scored = f", dev EM {dev['exact_match']:.3f}, F1 {dev['f1']:.3f}" if dev else ""
    if dev and RIGHT in dev:
        scored += f", outer loss {dev[RIGHT]:.3f} (another task's passages {dev[OTHER]:.3f}, none {dev[NONE]:.3f})"
    skipped = f", {notes['skipped_steps']} skipped" if notes["skipped_steps"] else ""
    return f"MetaInit {meta_init.fingerprint} at {config.output}: {notes['steps']} steps{skipped}{scored}"


def _chosen(result: Result, config: MetaTrainConfig) -> MetaInit:
    """The best checkpoint by dev F1, or the last."""
    checkpoint = result.checkpoint
    scored = [(c, m["dev_f1"]) for c, m in result.best_checkpoints or [] if m.get("dev_f1") is not None]
    if config.scoring.select == "best" and scored:
        checkpoint = max(scored, key=lambda item: item[1])[0]
    with checkpoint_of(checkpoint, "meta-training", result).as_directory() as folder:
        return MetaInit.load(Path(folder) / META_INIT)


def _worker(settings: dict[str, Any]) -> None:
    config, workers = MetaTrainConfig.model_validate(settings["config"]), workers_of_run()
    meta_train_worker(
        config,
        lambda first: worker_steps(train.get_dataset_shard("tasks"), config, first, workers),
        [one.read() for one in settings["dev"]],
        settings["notes"],
        WorkerReporter(settings["progress"]),
        train.torch.get_device(),
        workers,
        checkpoint_to_resume(),
    )


if __name__ == "__main__":
    job_main(MetaTrainConfig, run, __doc__ or "")
