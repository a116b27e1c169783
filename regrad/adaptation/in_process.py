"""Fine-tuning in this process, without a cluster: what a job with one worker does, for a notebook or a small model."""

from __future__ import annotations

from regrad.adaptation.finetuning import Finetuner, finished, usable
from regrad.adaptation.sources import ReadTasks, read_examples
from regrad.adaptation.static import StaticLora, parent_of
from regrad.config import FinetuneConfig
from regrad.language_model.loading import load_language_model


def finetune_in_process(config: FinetuneConfig, read_tasks: ReadTasks, device: str = "cpu") -> StaticLora:
    """Train one LoRA from start to end; nothing is written, and there are no checkpoints.

    Raises `CorpusError`, `TrainingError` or `MethodError` as a job does.
    """
    parent = parent_of(config)
    lm = load_language_model(config.model, device)
    found = read_examples(config, lm, read_tasks)
    examples = usable(lm, found, config)
    tuner = Finetuner(lm, config, examples, parent=parent)
    state = tuner.run()
    notes = {
        "objective": config.objective,
        "examples": len(examples),
        "left_out": max(0, min(len(found), config.max_examples or len(found)) - len(examples)),
        "parent": parent.digest if parent else None,
        "settings": config.model_dump(mode="json", include={"optimizer", "seed", "k", "corpus", "tasks"}),
    }
    return finished(lm, tuner.values, state, notes)
