"""Job: train a network that predicts updates of a LoRA from demonstrations (RAG-GD) with Ray Train.

ray job submit -- python -m ray_jobs.train_predictor --config configs/jobs/predictor-lab.yaml
"""

from __future__ import annotations

from ray_jobs.cluster import job_main, require_model
from ray_jobs.run_settings import finished_line, is_finished
from ray_jobs.train_runner import saved, steps_line, train_until_done
from regrad.storage import check_replaceable
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.predictor.artifact import CARD, UpdatePredictor
from regrad.training.predictor.config import PredictorConfig
from regrad.training.predictor.contexts import tasks_digest
from regrad.training.predictor.learner import PREDICTOR, predictor_worker
from regrad.training.workers import Workers


def run(config: PredictorConfig) -> str:
    """Train, or resume an unfinished run, and write `config.output`; returns one line about it.

    A finished result of the same settings is left as it is. Raises `TrainingError` for one of others.
    """
    Workers(count=config.cluster.workers).check(config.optimizer.batch_size)
    check_replaceable(config.output, CARD)
    require_model(config.model.path)
    data = {"adapter": StaticLora.load(config.adapter).digest, "tasks": tasks_digest(config.tasks)}
    if is_finished(config, data):
        return finished_line(_describe(UpdatePredictor.load(config.output), config))
    keep = saved(UpdatePredictor.load, PREDICTOR, config, data)
    return _describe(train_until_done(config, data, predictor_worker, keep, "training the predictor"), config)


def _describe(predictor: UpdatePredictor, config: PredictorConfig) -> str:
    """One line about a run."""
    notes = predictor.notes
    return (
        f"predictor {predictor.digest} at {config.output}: {notes['parameters']} parameters ({notes['share']:.1%} of "
        f"the base model's), {steps_line(notes)}"
    )


if __name__ == "__main__":
    job_main(PredictorConfig, run, __doc__ or "")
