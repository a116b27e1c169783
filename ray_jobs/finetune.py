"""Job: train one LoRA for all questions (continual training, fine-tuning) with Ray Train; the result is an adapter.

ray job submit -- python -m ray_jobs.finetune --config configs/jobs/finetune-lab.yaml
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import train
from ray.train import Result

from ray_jobs.cluster import cluster, require_workers
from ray_jobs.entry import main
from ray_jobs.progress import progress_channel
from ray_jobs.reporter import WorkerReporter
from ray_jobs.train_runner import fit_until_done, run_directory, scaling, trainer_class
from regrad.errors import TrainingError
from regrad.models.loading import LanguageModel, load_language_model
from regrad.storage import check_replaceable
from regrad.training.lora.config import FinetuneConfig
from regrad.training.lora.examples import digest, read_examples
from regrad.training.lora.finetuning import (
    Finetuner,
    FinetuneState,
    check_shares,
    finished,
    load_checkpoint,
    save_checkpoint,
    usable,
)
from regrad.training.lora.lora_artifact import CARD, StaticLora, parent_of

logger = logging.getLogger(__name__)


def run(config: FinetuneConfig) -> str:
    """Train, or go on with an unfinished run, and write `config.output`; returns one line about it."""
    check_shares(config, config.cluster.workers)
    check_replaceable(config.output, CARD)
    parent = parent_of(config)
    data = {"examples": digest(config), "parent": parent.digest if parent else None}
    with cluster():
        require_workers(config.cluster)
        with run_directory(config, data) as place, progress_channel(logger.info) as progress:
            settings = {"config": config.model_dump(mode="json"), "data": data, "progress": progress}
            make_trainer = partial(
                trainer_class(),
                _worker,
                train_loop_config=settings,
                scaling_config=scaling(config.cluster),
                run_config=place.run_config(),
            )
            result = fit_until_done(make_trainer, place, config.checkpoints.max_failures, "fine-tuning")
            adapter = _adapter(result)
            adapter.save(config.output)
            place.remove()
    return describe(adapter, config)


def describe(adapter: StaticLora, config: FinetuneConfig) -> str:
    """One line about a run."""
    notes = adapter.notes
    skipped = f", {notes['skipped_steps']} skipped" if notes["skipped_steps"] else ""
    left_out = f" ({notes['left_out']} left out)" if notes["left_out"] else ""
    loss = f", loss {notes['losses'][-1]:.4f}" if notes["losses"] else ""
    return (
        f"adapter {adapter.digest} at {config.output}: {config.objective}, {notes['examples']} examples{left_out}, "
        f"{notes['steps']} steps{skipped}{loss}"
    )


class _Reporter(WorkerReporter):
    """A `Listener` of fine-tuning; a checkpoint also has the adapter as it is then."""

    def __init__(self, progress: Any, lm: LanguageModel, notes: dict[str, Any]) -> None:
        super().__init__(progress)
        self._lm, self._notes = lm, notes

    def report(self, text: str) -> None:
        self.tell(text)

    def checkpoint(self, state: FinetuneState, tensors: dict[str, torch.Tensor]) -> None:
        def save(folder: Path) -> None:
            save_checkpoint(folder, state, tensors)
            workers = train.get_context().get_world_size()
            finished(self._lm, tensors["values"][0], state, self._notes, workers).save(folder / "adapter")

        self.keep({"step": state.step}, save)


def _worker(settings: dict[str, Any]) -> None:
    config = FinetuneConfig.model_validate(settings["config"])
    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    lm = load_language_model(config.model, train.torch.get_device())
    found = read_examples(config, lm)
    examples = usable(lm, found, config)
    kept = min(len(found), config.max_examples or len(found))
    notes = {
        **settings["data"],
        "objective": config.objective,
        "examples": len(examples),
        "left_out": max(0, kept - len(examples)),
        "settings": config.model_dump(mode="json", include={"optimizer", "seed", "k", "corpus", "tasks"}),
    }
    reporter = _Reporter(settings["progress"], lm, notes)
    tuner = Finetuner(lm, config, examples, rank, world_size, _mean(world_size), reporter, parent_of(config))
    if checkpoint := train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state, tensors = load_checkpoint(Path(folder))
        tuner.run(state, tensors)
    else:
        tuner.run()


def _mean(world_size: int) -> Any:
    def mean(values: torch.Tensor) -> torch.Tensor:
        if world_size > 1:
            torch.distributed.all_reduce(values)
        return values / world_size

    return mean


def _adapter(result: Result) -> StaticLora:
    if result.checkpoint is None:
        raise TrainingError(f"fine-tuning made no checkpoint: {result.error}")
    with result.checkpoint.as_directory() as folder:
        return StaticLora.load(Path(folder) / "adapter")


if __name__ == "__main__":
    main(FinetuneConfig, run, __doc__ or "")
