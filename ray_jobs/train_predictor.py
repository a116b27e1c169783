"""Job: train a network that predicts updates of a LoRA from demonstrations (RAG-GD) with Ray Train.

ray job submit -- python -m ray_jobs.train_predictor --config configs/jobs/predictor-lab.yaml
"""

from __future__ import annotations

from ray_jobs.cluster import job_main, require_model
from ray_jobs.train_runner import saved, steps_line, train_until_done
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
    keep = saved(UpdatePredictor.load, PREDICTOR, config.output)
    predictor = train_until_done(config, data, predictor_worker, keep, "training the predictor")
    notes = predictor.notes
    return (
        f"predictor {predictor.digest} at {config.output}: {notes['parameters']} parameters ({notes['share']:.1%} of "
        f"the base model's), {steps_line(notes)}"
    )


if __name__ == "__main__":
    job_main(PredictorConfig, run, __doc__ or "")
