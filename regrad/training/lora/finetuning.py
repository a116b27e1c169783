"""Fine-tuning one LoRA, or one soft prompt: its examples, what one step computes and updates, and one worker's run from
start to end.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrad.errors import MethodError, TokenOutOfVocabulary, TrainingError
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.precision import choose_precision
from regrad.models.virtual_tokens import virtual_tokens
from regrad.training.callbacks import Listener, Silent
from regrad.training.checkpoint import TrainState
from regrad.training.loop import StepResult, train_on
from regrad.training.lora.batched import Beside, RowTrainer
from regrad.training.lora.config import FinetuneConfig
from regrad.training.lora.examples import Example, read_examples
from regrad.training.lora.in_force import AdaptersInForce, adapters_manifest, check_coverage
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.lora.soft_prompt import SoftPrompt, initial_embeddings, room_for
from regrad.training.workers import Workers

Trained = StaticLora | SoftPrompt
"""What `regrad finetune` makes."""

_NOTED = {"optimizer", "seed", "k", "corpus", "tasks", "questions_together"}
_NOTED_OF_PROMPTS = _NOTED | {"soft_prompt"}


def kind_of(config: FinetuneConfig) -> type[StaticLora] | type[SoftPrompt]:
    """What these settings train."""
    return SoftPrompt if config.soft_prompt else StaticLora


def load_trained(config: FinetuneConfig, uri: str | Path) -> Trained:
    """What a run with these settings wrote; raises as the `load` of its kind."""
    return kind_of(config).load(uri)


def parent_of(config: FinetuneConfig) -> Trained | None:
    """What a run continues, if its settings name it; raises as `load_trained`."""
    return load_trained(config, config.start_from) if config.start_from else None


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


class FinetuneLearner(ABC):
    """One worker's side of fine-tuning: a `Learner` of examples, whose `RowTrainer` has one row.

    Raises `TrainingError` if the batch cannot be shared equally.
    """

    kind: str
    product_name: str
    remedy = "lower optimizer.lr"

    def __init__(
        self, lm: LanguageModel, config: FinetuneConfig, notes: Mapping[str, Any] | None, workers: Workers
    ) -> None:
        workers.check(config.optimizer.batch_size)
        self._lm = lm
        self._notes = notes or {}
        self._workers = workers
        self._precision = config.optimizer.precision
        self._trainer = self._start(config)
        self.base = lm.identity()
        self.device = lm.device

    @abstractmethod
    def _start(self, config: FinetuneConfig) -> RowTrainer:
        """What trains its numbers, at their first values."""

    @abstractmethod
    def product(self, state: TrainState) -> Trained:
        """What was trained, as it is now, with notes on the run; `seconds` is the sum over all workers."""

    @property
    def values(self) -> Tensor:
        """The numbers as they are now [P] float32 on the CPU."""
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

    def _noted(self, state: TrainState) -> dict[str, Any]:
        return {**self._notes, **state.notes(self._workers.count)}

    def _on_any(self, here: bool) -> bool:
        return bool(self._workers.mean(torch.tensor([float(here)], device=self.device)) > 0)


class LoraLearner(FinetuneLearner):
    """Of a LoRA. With a `parent` it continues from that one, with a new optimiser. What is `beside` it is applied, too,
    and not trained. Raises `MethodError` if the parent is another model's.
    """

    kind = "fine-tuning"
    product_name = StaticLora.KIND.name

    def __init__(
        self,
        lm: LanguageModel,
        config: FinetuneConfig,
        notes: Mapping[str, Any] | None = None,
        parent: StaticLora | None = None,
        workers: Workers = Workers(),
        beside: Beside | None = None,
    ) -> None:
        if parent is not None:
            parent.check_base(lm)
            parent.check_subspace(lm)
        self._parent, self._beside = parent, beside
        super().__init__(lm, config, notes, workers)

    def _start(self, config: FinetuneConfig) -> RowTrainer:
        start_P = self._parent.values if self._parent is not None else self._lm.subspace.initial(config.seed)
        return RowTrainer(self._lm, start_P[None], config.optimizer, reduce=self._workers.mean, beside=self._beside)

    def product(self, state: TrainState) -> StaticLora:
        """See `FinetuneLearner`."""
        return StaticLora(self._lm.config, self.base, self._lm.subspace, self.values, self._noted(state))


class SoftPromptLearner(FinetuneLearner):
    """Of a soft prompt, from `start_ND` on, which are the embeddings of the virtual tokens `ids` of the examples."""

    kind = "prompt tuning"
    product_name = SoftPrompt.KIND.name

    def __init__(
        self,
        lm: LanguageModel,
        config: FinetuneConfig,
        ids: Sequence[int],
        start_ND: Tensor,
        notes: Mapping[str, Any] | None = None,
        workers: Workers = Workers(),
    ) -> None:
        self._ids, self._start_ND = ids, start_ND
        super().__init__(lm, config, notes, workers)

    def _start(self, config: FinetuneConfig) -> RowTrainer:
        start_1P, tokens = self._start_ND.flatten()[None], virtual_tokens(self._lm)
        return RowTrainer(
            self._lm,
            start_1P,
            config.optimizer,
            reduce=self._workers.mean,
            force=lambda row_P: tokens.replaced(self._ids, row_P.view(self._start_ND.shape)),
        )

    def product(self, state: TrainState) -> SoftPrompt:
        """See `FinetuneLearner`."""
        values_ND = self.values.view(self._start_ND.shape)
        return SoftPrompt(self._lm.config, self.base, values_ND, self._noted(state))


def finetune_worker(
    config: FinetuneConfig,
    listener: Listener,
    device: torch.device | str,
    workers: Workers = Workers(),
    checkpoint: AbstractContextManager[Path | None] = nullcontext(),
) -> Trained:
    """One worker's run, from the start or from a checkpoint.

    Raises `CorpusError` for bad data, `MethodError` for a parent that does not fit, or a soft prompt that leaves no
    room, and `TrainingError` as `Loop.run` and `resume` do.
    """
    parent = parent_of(config)
    manifest = adapters_manifest(config)
    lm = load_language_model(config.model, device)
    start_ND, virtual = _virtual(lm, config, parent)
    found = read_examples(config, lm, virtual)
    examples = usable(lm, found, config)
    notes = {
        "objective": config.objective,
        "examples": len(examples),
        "left_out": max(0, min(len(found), config.max_examples or len(found)) - len(examples)),
        "parent": parent.digest if parent else None,
        "adapters": manifest.fingerprint if manifest else None,
        "settings": config.model_dump(mode="json", include=_NOTED_OF_PROMPTS if config.soft_prompt else _NOTED),
    }
    learner: FinetuneLearner
    if start_ND is not None:
        learner = SoftPromptLearner(lm, config, virtual, start_ND, notes, workers)
    else:
        beside = AdaptersInForce(lm, config, manifest) if manifest else None
        static = parent if isinstance(parent, StaticLora) else None
        learner = LoraLearner(lm, config, notes, static, workers, beside)
    return learner.product(train_on(learner, examples, config, listener, workers, checkpoint))


def _virtual(
    lm: LanguageModel, config: FinetuneConfig, parent: Trained | None
) -> tuple[Tensor | None, tuple[int, ...]]:
    """Of a soft prompt what training starts from [N, D], and the ids of its tokens; else None and no ids.

    Raises `MethodError` for a parent with another number of tokens, and as `SoftPrompt.put`.
    """
    if config.soft_prompt is None:
        return None, ()
    if not isinstance(parent, SoftPrompt):
        start_ND = initial_embeddings(lm, config.soft_prompt, config.seed)
        return start_ND, room_for(lm, start_ND)
    if (found := len(parent.values)) != config.soft_prompt.tokens:
        raise MethodError(
            f"the soft prompt to continue has {found} virtual tokens, the settings {config.soft_prompt.tokens}: set "
            f"soft_prompt.tokens={found}",
            code="soft_prompt_of_another_length",
            expected=config.soft_prompt.tokens,
            found=found,
        )
    return parent.values, parent.put(lm)


def finetune_in_process(config: FinetuneConfig, device: str = "cpu") -> Trained:
    """The job with one worker and no cluster, from start to end; nothing is written, and there are no checkpoints.

    Raises `CorpusError`, `TrainingError` or `MethodError` as a job does.
    """
    if manifest := adapters_manifest(config):
        check_coverage(config, manifest)
    return finetune_worker(config, Silent(), device)
