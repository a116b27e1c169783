"""Job: train one LoRA for all questions (continual training, fine-tuning) with Ray Train; the result is an adapter. Or,
with `soft_prompt`, a soft prompt on the same data.

ray job submit -- python -m ray_jobs.finetune --config configs/jobs/finetune-lab.yaml
"""

from __future__ import annotations

from functools import partial

from ray_jobs.cluster import job_main, require_model
from ray_jobs.run_settings import finished_line, is_finished
from ray_jobs.train_runner import saved, steps_line, train_until_done
from regrad.storage import check_replaceable
from regrad.text import counted, readable_size
from regrad.training.lora.config import FinetuneConfig
from regrad.training.lora.examples import data_digest
from regrad.training.lora.finetuning import Trained, finetune_worker, kind_of, load_trained, parent_of
from regrad.training.lora.in_force import adapters_manifest, check_coverage
from regrad.training.lora.soft_prompt import SoftPrompt
from regrad.training.workers import Workers


def run(config: FinetuneConfig) -> str:
    """Train, or resume an unfinished run, and write `config.output`; returns one line about it.

    A finished result of the same settings is left as it is. Raises `TrainingError` for one of others.
    """
    Workers(count=config.cluster.workers).check(config.optimizer.batch_size)
    card = kind_of(config).KIND
    check_replaceable(config.output, card.file)
    require_model(config.model.path)
    parent = parent_of(config)
    adapters = adapters_manifest(config)
    coverage = check_coverage(config, adapters) if adapters else None
    data = {
        "examples": data_digest(config),
        "parent": parent.digest if parent else None,
        "adapters": adapters.label if adapters else None,
    }
    missing = f", {coverage}" if coverage and coverage.missing else ""
    load = partial(load_trained, config)
    if is_finished(config, data):
        return finished_line(_describe(load(config.output), config) + missing)
    keep = saved(load, card.name, config, data)
    return _describe(train_until_done(config, data, finetune_worker, keep, "fine-tuning"), config) + missing


def _describe(made: Trained, config: FinetuneConfig) -> str:
    """One line about a run, and about the size of a soft prompt."""
    notes = made.notes
    left_out = f" ({notes['left_out']} left out)" if notes["left_out"] else ""
    what = f"{kind_of(config).KIND.words} {made.digest} at {config.output}"
    line = f"{what}: {config.objective}, {notes['examples']} examples{left_out}, {steps_line(notes)}"
    if isinstance(made, SoftPrompt):
        line += f", {counted(len(made.values), 'virtual token')} in {readable_size(made.size_bytes)}"
    return line


if __name__ == "__main__":
    job_main(FinetuneConfig, run, __doc__ or "")
