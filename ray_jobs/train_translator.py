"""Job: train a network that generates the LoRAs of passages, from a bank of trained ones (DyPRAG), with Ray Train.

ray job submit -- python -m ray_jobs.train_translator --config configs/jobs/translator-lab.yaml
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
from regrad.training.translator.artifact import CARD, Translator
from regrad.training.translator.config import TranslatorConfig
from regrad.training.translator.learner import TRANSLATOR, translator_worker
from regrad.training.translator.samples import samples_digest
from regrad.training.workers import Workers


def run(config: TranslatorConfig) -> str:
    """Train, or resume an unfinished run, and write `config.output`; returns one line about it."""
    Workers(count=config.cluster.workers).check(config.optimizer.batch_size)
    check_replaceable(config.output, CARD)
    data = samples_digest(config)
    with cluster():
        require_workers(config.cluster)
        with run_directory(config, data) as place, watching(config) as progress:
            settings = {"config": config.model_dump(mode="json"), "progress": progress}
            leaner = "use fewer workers (cluster.workers), or start again with a smaller optimizer.batch_size"
            result = fit_until_done(_worker, settings, config, place, "training the translator", leaner)
            translator = _translator(result)
            translator.save(config.output)
            place.remove()
    notes = translator.notes
    skipped = f", {notes['skipped_steps']} skipped" if notes["skipped_steps"] else ""
    return (
        f"translator {translator.digest} at {config.output}: {notes['parameters']} parameters, "
        f"{notes['steps']} steps{skipped}, loss {notes['losses'][-1]:.4f}"
    )


def _worker(settings: dict[str, Any]) -> None:
    config = TranslatorConfig.model_validate(settings["config"])
    listener, device = WorkerReporter(settings["progress"]), train.torch.get_device()
    translator_worker(config, listener, device, workers_of_run(), checkpoint_to_resume())


def _translator(result: Result) -> Translator:
    if result.checkpoint is None:
        raise TrainingError(f"training the translator made no checkpoint: {result.error}", code="no_checkpoint")
    with result.checkpoint.as_directory() as folder:
        return Translator.load(Path(folder) / TRANSLATOR)


if __name__ == "__main__":
    job_main(TranslatorConfig, run, __doc__ or "")
