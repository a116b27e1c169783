"""Test-time adaptation: n gradient steps on the retrieved passages, for one question.

The passages are in the prompt, too; with `in_prompt: false` the model answers only from what it was just trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from regrad.data.passages import Passage
from regrad.errors import TokenOutOfVocabulary
from regrad.methods.base import AtomProvider, Atoms, Evidence, Method, MethodInfo, MethodSettings, Note, Plan
from regrad.models.loading import LanguageModel
from regrad.training.lora.batched import train_rows
from regrad.training.lora.config import AdamWConfig
from regrad.training.lora.examples import Example, longest, passage_example, suffix_example

ADAPT_ON: dict[str, Callable[[LanguageModel, Passage], Example]] = {
    "passages": passage_example,
    "suffixes": suffix_example,
}


@dataclass(frozen=True)
class Adapted:
    """A question's LoRA [P], or None if there is no passage to train on; and what was left out, and why."""

    update: Tensor | None
    note: str = ""


def adapt_online(
    lm: LanguageModel,
    start_P: Tensor,
    questions: Sequence[Sequence[Passage]],
    steps: int,
    config: AdamWConfig,
    adapt_on: str = "passages",
) -> list[Adapted]:
    """For each question `steps` AdamW steps from `start_P`, each on all of the question's passages."""
    limit = longest(lm, 1 << 30)

    def read(passage: Passage) -> Example:
        try:
            return ADAPT_ON[adapt_on](lm, passage)
        except TokenOutOfVocabulary:
            return Example(())

    examples = [[read(passage) for passage in passages] for passages in questions]
    usable = [[item for item in items if item.predicts and len(item.ids) <= limit] for items in examples]
    plans = [[items] * steps if items else [] for items in usable]
    trained = train_rows(lm, start_P.expand(len(questions), -1), plans, config)
    adapted = []
    for value_P, items, kept, failed in zip(trained.values, examples, usable, trained.failed, strict=True):
        note = ""
        if failed:
            note = "a gradient is not finite: the base model answers"
        elif left_out := len(items) - len(kept):
            note = f"{left_out} passages do not fit the model"
        adapted.append(Adapted(value_P.float().cpu() if kept and not failed else None, note))
    return adapted


class TtaConfig(MethodSettings):
    """tta: needs no files."""

    METHODS: ClassVar = (
        MethodInfo("tta", "trained on the passages for this question", passages_in_prompt=True, update="adapting"),
    )

    steps: int = Field(3, ge=1, le=1000, description="gradient steps on a question's passages")
    lr: float = Field(1e-4, gt=0, description="learning rate of AdamW")
    adapt_on: Literal["passages", "suffixes"] = Field(
        "passages", description="predict all of a passage, or its second part from its first (TTARAG)"
    )
    in_prompt: bool = Field(True, description="put the passages into the prompt, too; false: only train on them")
    seed: int = Field(
        0, description="draws the LoRA that every question starts from; an evaluation adds the cell's seed"
    )

    @property
    def info(self) -> MethodInfo:
        """See `MethodSettings`."""
        return replace(super().info, passages_in_prompt=self.in_prompt)

    def seeded(self, seed: int) -> Self:
        """See `MethodSettings`: the A matrices of the first LoRA are drawn."""
        return self.model_copy(update={"seed": self.seed + seed})

    def open(self, lm: LanguageModel) -> Method:
        """See `MethodSettings`."""
        return AdaptedForQuestion(self, lm)


class AdaptedForQuestion(Method):
    """Every question starts from the same LoRA, which does nothing yet; what it learns is dropped afterwards."""

    def __init__(self, settings: TtaConfig, lm: LanguageModel) -> None:
        super().__init__(settings)
        self._lm = lm
        self._settings = settings
        self._start_P = lm.subspace.initial(settings.seed).to(lm.device)
        self._optimizer = AdamWConfig(lr=settings.lr)

    def runs_model(self, atoms: Atoms) -> bool:
        """See `Method`."""
        return True

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        """See `Method`. All questions are trained on at once."""
        settings = self._settings
        passages = [item.passages for item in evidences]
        adapted = adapt_online(self._lm, self._start_P, passages, settings.steps, self._optimizer, settings.adapt_on)
        plans = []
        for evidence, item in zip(evidences, adapted, strict=True):
            notes = (Note("fewer", item.note),) if item.note else ()
            plans.append(Plan(self.prompt(evidence), self._lm.subspace.updates(item.update), notes))
        return plans
