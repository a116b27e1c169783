"""Job: train a network that generates the LoRAs of passages, from a bank of trained ones (DyPRAG), with Ray Train.

ray job submit -- python -m ray_jobs.train_translator --config configs/jobs/translator-lab.yaml
"""

from __future__ import annotations

from ray_jobs.cluster import job_main, require_model
from ray_jobs.run_settings import finished_line, is_finished
from ray_jobs.train_runner import saved, steps_line, train_until_done
from regrad.storage import check_replaceable
from regrad.training.translator.artifact import CARD, Translator
from regrad.training.translator.config import TranslatorConfig
from regrad.training.translator.learner import TRANSLATOR, translator_worker
from regrad.training.translator.samples import samples_digest
from regrad.training.workers import Workers


def run(config: TranslatorConfig) -> str:
    """Train, or resume an unfinished run, and write `config.output`; returns one line about it.

    A finished result of the same settings is left as it is. Raises `TrainingError` for one of others.
    """
    Workers(count=config.cluster.workers).check(config.optimizer.batch_size)
    check_replaceable(config.output, CARD)
    require_model(config.model.path)
    data = samples_digest(config)
    if is_finished(config, data):
        return finished_line(_describe(Translator.load(config.output), config))
    keep = saved(Translator.load, TRANSLATOR, config, data)
    return _describe(train_until_done(config, data, translator_worker, keep, "training the translator"), config)


def _describe(translator: Translator, config: TranslatorConfig) -> str:
    """One line about a run."""
    notes = translator.notes
    return f"translator {translator.digest} at {config.output}: {notes['parameters']} parameters, {steps_line(notes)}"


if __name__ == "__main__":
    job_main(TranslatorConfig, run, __doc__ or "")
