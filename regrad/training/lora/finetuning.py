"""Fine-tuning one LoRA: its examples, what one step computes and updates, and one worker's run from start to end."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrad.errors import TokenOutOfVocabulary, TrainingError
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.precision import choose_precision
from regrad.training.callbacks import Listener, Silent
from regrad.training.checkpoint import TrainState
from regrad.training.loop import StepResult, train_on
from regrad.training.lora.batched import Beside, RowTrainer
from regrad.training.lora.config import FinetuneConfig
from regrad.training.lora.examples import Example, read_examples
from regrad.training.lora.in_force import AdaptersInForce, adapters_manifest, check_coverage
from regrad.training.lora.lora_artifact import StaticLora, parent_of
from regrad.training.workers import Workers

ADAPTER = "adapter"
_NOTED = {"optimizer", "seed", "k", "corpus", "tasks", "questions_together"}


def usable(lm: LanguageModel, examples: Sequence[Example], config: FinetuneConfig) -> list[Example]:
    """The examples that fit the model, at most `config.max_examples` of them, drawn by the seed; no others are made.

    Raises `TrainingError` if none is left.
    """
    limit = lm.within(config.max_tokens)
    wanted = min(config.max_examples or len(examples), len(examples))
    # The sample first, then all others in random order: each takes the place of one that does not fit.
    rng = random.Random(f"{config.seed}/examples")
    drawn = rng.sample(range(len(examples)), wanted)
    others = sorted(set(range(len(examples))).difference(drawn))
    rng.shuffle(others)
    fitting: dict[int, Example] = {}
    for number in [*drawn, *others]:
        try:
            example = examples[number]
        except TokenOutOfVocabulary:
            continue
        if example.predicts and all(len(ids) <= limit for ids, _ in example.sequences):
            fitting[number] = example
        if len(fitting) == wanted:
            break
    if not fitting:
        raise TrainingError(
            f"none of {len(examples)} examples has between 2 and {limit} tokens: there is nothing to train on; set "
            "max_tokens higher",
            code="no_example_fits",
            examples=len(examples),
            max_tokens=limit,
        )
    return [fitting[number] for number in sorted(fitting)]


class LoraLearner:
    """One worker's side of fine-tuning: a `Learner` of examples.

    With a `parent` it continues from that LoRA, with a new optimiser. What is `beside` it is applied, too, and not
    trained. Raises `MethodError` if the parent is another model's, and `TrainingError` if the batch cannot be shared
    equally.
    """

    kind = "fine-tuning"
    product_name = ADAPTER
    remedy = "lower optimizer.lr"

    def __init__(
        self,
        lm: LanguageModel,
        config: FinetuneConfig,
        notes: Mapping[str, Any] | None = None,
        parent: StaticLora | None = None,
        workers: Workers = Workers(),
        beside: Beside | None = None,
    ) -> None:
        workers.check(config.optimizer.batch_size)
        if parent is not None:
            parent.check_base(lm)
            parent.check_subspace(lm)
        start_P = parent.values if parent is not None else lm.subspace.initial(config.seed)
        self._lm = lm
        self._notes = notes or {}
        self._workers = workers
        self._precision = config.optimizer.precision
        self._trainer = RowTrainer(lm, start_P[None], config.optimizer, reduce=workers.mean, beside=beside)
        self.base = lm.identity()
        self.device = lm.device

    @property
    def values(self) -> Tensor:
        """The LoRA as it is now [P] float32 on the CPU."""
        return self._trainer.values[0].float().cpu()

    def prepare(self, batch: Sequence[Example], state: TrainState) -> str:
        """Choose the precision, the same for all workers."""
        chosen = choose_precision(self._precision, self.device, self._lm.config.dtype, state.decided, self._on_any)
        self._trainer.half = chosen.half
        return chosen.note

    def step(self, batch: Sequence[Example], factor: float) -> StepResult:
        """See `Learner`."""
        losses, updated = self._trainer.step([batch], factor)
        counts = {"tokens": sum(len(ids) for example in batch for ids, _ in example.sequences)}
        return StepResult(float(losses[0]) if updated[0] else None, counts)

    def numbers(self) -> dict[str, float]:
        """See `Learner`: there is only the loss."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return self._trainer.state()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Learner`."""
        self._trainer.load(tensors)

    def product(self, state: TrainState) -> StaticLora:
        """The adapter as it is now, with notes on the run; `seconds` is the sum over all workers."""
        notes = {**self._notes, **state.notes(self._workers.count)}
        return StaticLora(self._lm.config, self.base, self._lm.subspace, self.values, notes)

    def _on_any(self, here: bool) -> bool:
        return bool(self._workers.mean(torch.tensor([float(here)], device=self.device)) > 0)


def finetune_worker(
    config: FinetuneConfig,
    listener: Listener,
    device: torch.device | str,
    workers: Workers = Workers(),
    checkpoint: AbstractContextManager[Path | None] = nullcontext(),
) -> StaticLora:
    """One worker's run, from the start or from a checkpoint.

    Raises `CorpusError` for bad data, `MethodError` as `LoraLearner`, `TrainingError` as `Loop.run` and `resume` do.
    """
    parent = parent_of(config)
    manifest = adapters_manifest(config)
    lm = load_language_model(config.model, device)
    found = read_examples(config, lm)
    examples = usable(lm, found, config)
    notes = {
        "objective": config.objective,
        "examples": len(examples),
        "left_out": max(0, min(len(found), config.max_examples or len(found)) - len(examples)),
        "parent": parent.digest if parent else None,
        "adapters": manifest.fingerprint if manifest else None,
        "settings": config.model_dump(mode="json", include=_NOTED),
    }
    beside = AdaptersInForce(lm, config, manifest) if manifest else None
    learner = LoraLearner(lm, config, notes, parent, workers, beside)
    return learner.product(train_on(learner, examples, config, listener, workers, checkpoint))


def finetune_in_process(config: FinetuneConfig, device: str = "cpu") -> StaticLora:
    """The job with one worker and no cluster, from start to end; nothing is written, and there are no checkpoints.

    Raises `CorpusError`, `TrainingError` or `MethodError` as a job does.
    """
    if manifest := adapters_manifest(config):
        check_coverage(config, manifest)
    return finetune_worker(config, Silent(), device)
