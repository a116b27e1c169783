"""Job: train one LoRA for all questions (continual training, fine-tuning) with Ray Train; the result is an adapter.

ray job submit -- python -m ray_jobs.finetune --config configs/jobs/finetune-lab.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import train
from ray.train import Result

from ray_jobs.cluster import cluster, job_main, require_workers
from ray_jobs.train_runner import (
    WorkerReporter,
    checkpoint_to_resume,
    fit_until_done,
    run_directory,
    watching,
    workers_of_run,
)
from regrad.errors import TrainingError
from regrad.storage import check_replaceable
from regrad.training.lora.config import FinetuneConfig
from regrad.training.lora.examples import data_digest
from regrad.training.lora.finetuning import ADAPTER, finetune_worker
from regrad.training.lora.in_force import adapters_manifest, check_coverage
from regrad.training.lora.lora_artifact import CARD, StaticLora, parent_of
from regrad.training.workers import Workers


def run(config: FinetuneConfig) -> str:
    """Train, or resume an unfinished run, and write `config.output`; returns one line about it."""
    Workers(count=config.cluster.workers).check(config.optimizer.batch_size)
    check_replaceable(config.output, CARD)
    parent = parent_of(config)
    adapters = adapters_manifest(config)
    coverage = check_coverage(config, adapters) if adapters else None
    data = {
        "examples": data_digest(config),
        "parent": parent.digest if parent else None,
        "adapters": adapters.label if adapters else None,
    }
    with cluster():
        require_workers(config.cluster)
        with run_directory(config, data) as place, watching(config) as progress:
            settings = {"config": config.model_dump(mode="json"), "progress": progress}
            result = fit_until_done(
                _worker,
                settings,
                config,
                place,
                "fine-tuning",
                "use fewer workers (cluster.workers), or start again with a smaller optimizer.batch_size",
            )
            adapter = _adapter(result)
            adapter.save(config.output)
            place.remove()
    missing = f", {coverage}" if coverage and coverage.missing else ""
    return _describe(adapter, config) + missing


def _describe(adapter: StaticLora, config: FinetuneConfig) -> str:
    """One line about a run."""
    notes = adapter.notes
    skipped = f", {notes['skipped_steps']} skipped" if notes["skipped_steps"] else ""
    left_out = f" ({notes['left_out']} left out)" if notes["left_out"] else ""
    loss = f", loss {notes['losses'][-1]:.4f}" if notes["losses"] else ""
    return (
        f"adapter {adapter.digest} at {config.output}: {config.objective}, {notes['examples']} examples{left_out}, "
        f"{notes['steps']} steps{skipped}{loss}"
    )


def _worker(settings: dict[str, Any]) -> None:
    config = FinetuneConfig.model_validate(settings["config"])
    listener, device = WorkerReporter(settings["progress"]), train.torch.get_device()
    finetune_worker(config, listener, device, workers_of_run(), checkpoint_to_resume())


def _adapter(result: Result) -> StaticLora:
    if result.checkpoint is None:
        raise TrainingError(f"fine-tuning made no checkpoint: {result.error}", code="no_checkpoint")
    with result.checkpoint.as_directory() as folder:
        return StaticLora.load(Path(folder) / ADAPTER)


if __name__ == "__main__":
    job_main(FinetuneConfig, run, __doc__ or "")
