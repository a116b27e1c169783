"""Job: train a network that predicts updates of a LoRA from demonstrations (RAG-GD) with Ray Train.

ray job submit -- python -m ray_jobs.train_predictor --config configs/jobs/predictor-lab.yaml
"""

from __future__ import annotations

from pathlib import Path

from ray_jobs.cluster import job_main, require_model
from ray_jobs.train_runner import train_until_done
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
    require_model(config.model.path)
    data = {"adapter": StaticLora.load(config.adapter).digest, "tasks": tasks_digest(config.tasks)}

    def keep(checkpoint: Path) -> UpdatePredictor:
        predictor = UpdatePredictor.load(checkpoint / PREDICTOR)
        predictor.save(config.output)
        return predictor

    predictor = train_until_done(config, data, predictor_worker, keep, "training the predictor")
    notes = predictor.notes
    skipped = f", {notes['skipped_steps']} skipped" if notes["skipped_steps"] else ""
    return (
        f"predictor {predictor.digest} at {config.output}: {notes['parameters']} parameters ({notes['share']:.1%} of "
        f"the base model's), {notes['steps']} steps{skipped}, loss {notes['losses'][-1]:.4f}"
    )


if __name__ == "__main__":
    job_main(PredictorConfig, run, __doc__ or "")
