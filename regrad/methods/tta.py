"""Test-time adaptation: gradient steps on the retrieved passages, for one question.

The passages are in the prompt, too; with `in_prompt: false` the model answers only from what it was just trained on.
TTARAG (arXiv 2601.11443) is one setting of it. It trains all weights; here a LoRA stands for them, as updates belong to
a request and the weights are never written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from regrad.data.passages import Passage
from regrad.errors import TokenOutOfVocabulary
from regrad.methods.base import AtomProvider, Atoms, Evidence, Method, MethodInfo, MethodSettings, Note, Plan
from regrad.models.config import SubspaceConfig
from regrad.models.subspace import Subspace, find_subspace
from regrad.training.lora.batched import train_rows
from regrad.training.lora.config import AdamWConfig
from regrad.training.lora.examples import Example, passage_example, suffix_example

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

ADAPT_ON: dict[str, Callable[[LanguageModel, Passage], Example]] = {
    "passages": passage_example,
    "suffixes": suffix_example,
}


class TtaConfig(MethodSettings):
    """tta: needs no files."""

    MOVED: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"first": "max_passages"}

    METHODS: ClassVar = (
        MethodInfo("tta", "trained on the passages for this question", passages_in_prompt=True, update="adapting"),
    )

    steps: int = Field(3, ge=1, le=1000, description="passes over a question's passages: a gradient step each")
    lr: float = Field(1e-4, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0, description="maximum norm of a step's gradient; not clipped if null")
    adapt_on: Literal["passages", "suffixes"] = Field(
        "passages", description="predict all of a passage, or its second part from its first (TTARAG)"
    )
    max_passages: int | None = Field(None, ge=1, description="train on the first N passages only; all if null")
    accumulation: int | None = Field(
        None,
        ge=1,
        description="passages of one gradient step, so that a pass has several, each on the sum of its losses over the "
        "passages of all steps and this number (TTARAG); null: all, on their mean",
    )
    max_tokens: int | None = Field(
        None, ge=2, description="limit for a passage, truncated to it; null: passages beyond the context are left out"
    )
    subspace: SubspaceConfig | None = Field(None, description="subspace of the trained LoRA; null: the model's own")
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
        """See `MethodSettings`. Raises `ModelError` if the model lacks the subspace."""
        return AdaptedForQuestion(self, lm)


class TtaragConfig(TtaConfig):
    """ttarag: the values of TTARAG's released code. A LoRA stands for all weights."""

    METHODS: ClassVar = (
        MethodInfo("ttarag", "trained on halves of the passages (TTARAG)", passages_in_prompt=True, update="adapting"),
    )

    steps: int = Field(1, ge=1, le=1000, description="passes over a question's passages")
    lr: float = Field(1e-5, gt=0, description="learning rate of AdamW; published for all weights: a LoRA needs more")
    weight_decay: float = Field(0.01, ge=0)
    clip: float | None = Field(0.1, gt=0, description="maximum norm of a step's gradient; not clipped if null")
    adapt_on: Literal["passages", "suffixes"] = "suffixes"
    max_passages: int | None = Field(3, ge=1, description="train on the first N passages only; all if null")
    accumulation: int | None = Field(2, ge=1, description="see tta")
    max_tokens: int | None = Field(512, ge=2, description="limit for a passage, truncated to it")


@dataclass(frozen=True)
class Adapted:
    """A question's LoRA [P], or None if there is no passage to train on; and what was left out, and why."""

    update: Tensor | None
    note: str = ""


def adapt_online(
    lm: LanguageModel,
    subspace: Subspace,
    start_P: Tensor,
    questions: Sequence[Sequence[Passage]],
    settings: TtaConfig,
) -> list[Adapted]:
    """A LoRA for each question's passages, from `start_P` and with an optimizer of its own."""
    limit = lm.within(1 << 30)
    written = [[_example(lm, passage, settings) for passage in each] for each in questions]
    fitting = [[item for item in items if item.predicts and len(item.ids) <= limit] for items in written]
    used = [items[: settings.max_passages] for items in fitting]
    size = settings.accumulation
    plans = [_batches(items, size) * settings.steps if items else [] for items in used]
    weights = [1 / (max(1, len(items)) * size) for items in used] if size else None
    config = AdamWConfig(lr=settings.lr, weight_decay=settings.weight_decay, clip=settings.clip)
    starts_UP = start_P.expand(len(questions), -1)
    trained = train_rows(lm, starts_UP, plans, config, lambda rows: {subspace: rows}, weights)
    adapted = []
    for value_P, items, kept, failed in zip(trained.values, written, fitting, trained.failed, strict=True):
        note = ""
        if failed:
            note = "a gradient is not finite: the base model answers"
        elif left_out := len(items) - len(kept):
            note = f"{left_out} passages do not fit the model"
        adapted.append(Adapted(value_P.float().cpu() if kept and not failed else None, note))
    return adapted


def _example(lm: LanguageModel, passage: Passage, settings: TtaConfig) -> Example:
    """What is learned of a passage; nothing of one that the model cannot read."""
    try:
        example = ADAPT_ON[settings.adapt_on](lm, passage)
    except TokenOutOfVocabulary:
        return Example(())
    return replace(example, ids=example.ids[: settings.max_tokens])


def _batches(examples: Sequence[Example], size: int | None) -> list[list[Example]]:
    size = size or len(examples)
    return [list(examples[start : start + size]) for start in range(0, len(examples), size)]


class AdaptedForQuestion(Method):
    """Every question starts from the same LoRA, which does nothing yet; what it learns is dropped afterwards."""

    def __init__(self, settings: TtaConfig, lm: LanguageModel) -> None:
        super().__init__(settings)
        self._lm = lm
        self._settings = settings
        self._subspace = find_subspace(lm.model, settings.subspace) if settings.subspace else lm.subspace
        self._start_P = self._subspace.initial(settings.seed).to(lm.device)

    def runs_model(self, atoms: Atoms) -> bool:
        """See `Method`."""
        return True

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        """See `Method`. All questions are trained on at once."""
        passages = [item.passages for item in evidences]
        adapted = adapt_online(self._lm, self._subspace, self._start_P, passages, self._settings)
        plans = []
        for evidence, item in zip(evidences, adapted, strict=True):
            notes = (Note("fewer", item.note),) if item.note else ()
            plans.append(Plan(self.prompt(evidence), self._subspace.updates(item.update), notes))
        return plans
