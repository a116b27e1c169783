"""A LoRA for each passage, as PRAG trains them: many passages at once, each result as if it had been alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from regrad.data.augmented import Augmented
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace
from regrad.training.lora.batched import train_rows
from regrad.training.lora.config import AdapterConfig, adapter_subspace
from regrad.training.lora.examples import Example, adapter_examples, longest
from regrad.training.lora.lora_artifact import StaticLora, join


@dataclass(frozen=True)
class Adapter:
    """A passage's LoRA [p] in the trainer's own subspace, or the reason why it has none."""

    values: Tensor | None
    problem: str = ""


def model_for_adapters(model: ModelConfig, adapter: AdapterConfig, static: StaticLora | None = None) -> ModelConfig:
    """The base model's settings with a subspace in which an adapter stands beside the static LoRA."""
    subspace = adapter_subspace(model.subspace, adapter, static.subspace.rank if static else 0)
    return model.model_copy(update={"subspace": subspace})


class AdapterTrainer:
    """Trains on a model loaded with `model_for_adapters`. All adapters start from the same vector, drawn by `seed`.

    Raises `MethodError` if the static LoRA is not the model's, or does not fit into its subspace.
    """

    def __init__(
        self, lm: LanguageModel, config: AdapterConfig, static: StaticLora | None = None, seed: int = 42, rows: int = 64
    ) -> None:
        self._lm, self._config, self._rows = lm, config, rows
        self.subspace = Subspace(lm.subspace.modules, config.rank, config.scaling)
        self._start_P = self.subspace.initial(seed).to(lm.device)
        self._static = None
        if static is not None:
            static.check_base(lm)
            self._static = static.subspace, static.values.to(lm.device)
            join([self._static], lm.subspace)

    def train(self, items: Sequence[Augmented]) -> list[Adapter]:
        """One adapter a passage, in order; one that cannot be trained says why and stops nothing."""
        plans = [self._plan(item) for item in items]
        results: list[Adapter] = []
        for start in range(0, len(items), self._rows):
            results += self._train(items[start : start + self._rows], plans[start : start + self._rows])
        return results

    def _train(self, items: Sequence[Augmented], plans: Sequence[list[list[Example]]]) -> list[Adapter]:
        trained = train_rows(self._lm, self._start_P.expand(len(items), -1), plans, self._config, self._lift)
        values, failed = trained.values.float().cpu(), trained.failed
        problems = [
            "" if plan and not bad else "non-finite gradient" if bad else _why_none(item)
            for item, plan, bad in zip(items, plans, failed, strict=True)
        ]
        return [
            Adapter(None if problem else value.clone(), problem)
            for value, problem in zip(values, problems, strict=True)
        ]

    def _plan(self, item: Augmented) -> list[list[Example]]:
        """One sequence a step, in PRAG's order, as often as there are epochs."""
        limit = longest(self._lm, self._config.max_tokens)
        found = adapter_examples(self._lm, item, self._config.pairs)
        return [[example] for example in found if example.predicts and len(example.ids) <= limit] * self._config.epochs

    def _lift(self, rows: Tensor) -> Tensor:
        own = [(self.subspace, rows)]
        return join([self._static, *own] if self._static else own, self._lm.subspace)


def _why_none(item: Augmented) -> str:
    return "every sequence is too long" if item.pairs else "no question-answer pairs"
