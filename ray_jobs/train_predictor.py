"""Job: train a network that predicts updates of a LoRA from demonstrations (RAG-GD) with Ray Train.

ray job submit -- python -m ray_jobs.train_predictor --config configs/jobs/predictor-lab.yaml
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
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.predictor.artifact import CARD, UpdatePredictor
from regrad.training.predictor.config import PredictorConfig
from regrad.training.predictor.contexts import tasks_digest
from regrad.training.predictor.learner import PREDICTOR, predictor_worker
from regrad.training.workers import Workers


def run(config: PredictorConfig) -> str:
    """Train, or resume an unfinished run, and write `config.output`; returns one line about it."""
    Workers(count=config.cluster.workers).check(config.optimizer.batch_size)
    check_replaceable(config.output, CARD)
    data = {"adapter": StaticLora.load(config.adapter).digest, "tasks": tasks_digest(config.tasks)}
    with cluster():
        require_workers(config.cluster)
        with run_directory(config, data) as place, watching(config) as progress:
            settings = {"config": config.model_dump(mode="json"), "progress": progress}
            leaner = "use fewer workers (cluster.workers), or start again with a smaller optimizer.batch_size"
            result = fit_until_done(_worker, settings, config, place, "training the predictor", leaner)
            predictor = _predictor(result)
            predictor.save(config.output)
            place.remove()
    notes = predictor.notes
    skipped = f", {notes['skipped_steps']} skipped" if notes["skipped_steps"] else ""
    return (
        f"predictor {predictor.digest} at {config.output}: {notes['parameters']} parameters ({notes['share']:.1%} of "
        f"the base model's), {notes['steps']} steps{skipped}, loss {notes['losses'][-1]:.4f}"
    )


def _worker(settings: dict[str, Any]) -> None:
    config = PredictorConfig.model_validate(settings["config"])
    listener, device = WorkerReporter(settings["progress"]), train.torch.get_device()
    predictor_worker(config, listener, device, workers_of_run(), checkpoint_to_resume())


def _predictor(result: Result) -> UpdatePredictor:
    if result.checkpoint is None:
        raise TrainingError(f"training the predictor made no checkpoint: {result.error}", code="no_checkpoint")
    with result.checkpoint.as_directory() as folder:
        return UpdatePredictor.load(Path(folder) / PREDICTOR)


if __name__ == "__main__":
    job_main(PredictorConfig, run, __doc__ or "")
