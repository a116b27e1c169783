"""Job: meta-train with Ray Train's TorchTrainer and DeepSpeed; the result is a MetaInit directory.

ray job submit -- python -m ray_jobs.meta_train --config configs/jobs/train-lab.yaml
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import train
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from ray_jobs.cluster import cluster, require_workers, wants_gpu
from ray_jobs.entry import main
from ray_jobs.progress import progress_channel
from regrad.config import MetaTrainConfig
from regrad.errors import RegradError, TrainingError
from regrad.language_model.loading import load_language_model
from regrad.meta.loop import MetaParameters, StepReport, check_shares, score, to_meta_init
from regrad.meta.loop import train as run_loop
from regrad.meta.tasks import read_tasks
from regrad.meta_init import CARD, MetaInit
from regrad.storage import Storage, check_replaceable


def run(config: MetaTrainConfig) -> str:
    """Train and write `config.output`; returns one line saying what was made and where."""
    check_shares(config, config.cluster.workers)
    check_replaceable(config.output, CARD)
    for tasks in filter(None, (config.tasks, config.dev)):
        read_tasks(tasks)
    with cluster(), progress_channel() as progress, _hand_over(config) as run_config:
        require_workers(config.cluster)
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"config": config.model_dump(mode="json"), "progress": progress},
            scaling_config=ScalingConfig(
                num_workers=config.cluster.workers,
                use_gpu=wants_gpu(config.cluster),
                resources_per_worker={"CPU": config.cluster.cpus_per_worker},
            ),
            run_config=run_config,
        )
        with _fit(trainer).as_directory() as folder:
            meta_init = MetaInit.load(folder)
        meta_init.save(config.output)
    notes = meta_init.notes
    dev = f", dev EM {notes['dev_exact_match']:.3f}" if "dev_exact_match" in notes else ""
    return f"MetaInit {meta_init.fingerprint} at {config.output}: {notes['steps']} steps{dev}"


@contextmanager
def _hand_over(config: MetaTrainConfig) -> Iterator[RunConfig]:
    """A place that workers and driver share, for as long as the job runs."""
    parent, _, name = config.output.rpartition("/")
    storage = Storage(f"{config.storage or parent}/.{name}.{uuid.uuid4().hex}.training")
    filesystem = None if storage.is_local else PyFileSystem(FSSpecHandler(storage.fs))
    try:
        yield RunConfig(name="meta_train", storage_path=storage.root, storage_filesystem=filesystem)
    finally:
        storage.remove()


def _fit(trainer: TorchTrainer) -> Checkpoint:
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise TrainingError(f"meta-training failed: {_cause(error)}") from error
    if result.checkpoint is None:
        raise TrainingError(f"meta-training made no checkpoint: {result.error}")
    return result.checkpoint


def _cause(error: TrainingFailedError) -> str:
    """One line: what went wrong in the first worker that failed, or the last line of Ray's own account."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause = getattr(failure, "cause", failure)
        return f"{type(cause).__name__}: {cause}" if not isinstance(cause, RegradError) else str(cause)
    return str(error).strip().splitlines()[-1]


def _worker(settings: dict[str, Any]) -> None:
    config, progress = MetaTrainConfig.model_validate(settings["config"]), settings["progress"]
    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    lm = load_language_model(config.model, train.torch.get_device())
    parameters = MetaParameters(lm, config.initial_step_size, config.seed)
    from regrad.meta.engine import deepspeed_engine

    engine = deepspeed_engine(parameters, config.optimizer)
    reports: list[StepReport] = []

    def report(step: StepReport) -> None:
        reports.append(step)
        if rank == 0:
            progress.push.remote(_line(step))

    run_loop(lm, parameters, engine, read_tasks(config.tasks), config, rank, world_size, report)
    if rank == 0:
        _finish(config, parameters, lm, reports, world_size)
    else:
        train.report({})


def _line(step: StepReport) -> str:
    return (
        f"step {step.step}/{step.steps}  loss {step.loss:.3f}  passage loss {step.inner_loss:.3f}  "
        f"{step.passages_per_second:.0f} passages/s  {step.seconds:.0f} s"
    )


def _finish(
    config: MetaTrainConfig, parameters: MetaParameters, lm: Any, reports: list[StepReport], workers: int
) -> None:
    notes = {
        "tasks": config.tasks,
        "steps": config.optimizer.steps,
        "workers": workers,
        "log": [asdict(r) for r in reports],
    }
    meta_init = to_meta_init(lm, parameters, config, notes)
    if config.dev is not None:
        notes["dev_exact_match"] = score(lm, meta_init, read_tasks(config.dev))
        meta_init = to_meta_init(lm, parameters, config, notes)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "meta_init"
        meta_init.save(target)
        train.report({"loss": reports[-1].loss}, checkpoint=Checkpoint.from_directory(target))


if __name__ == "__main__":
    main(MetaTrainConfig, run, __doc__ or "")
