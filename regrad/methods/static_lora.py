"""Continual training and fine-tuning: one LoRA for all questions.

Standard CPT reads the corpus, Instruction CPT reads it with questions about it, and the fine-tuned baselines learn the
task from the training questions: without passages (Direct) or with them in the prompt (RAG).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from regrad.methods.base import (
    Artefacts,
    AtomProvider,
    Evidence,
    Method,
    MethodInfo,
    MethodSettings,
    PassageCosts,
    Plan,
)
from regrad.models.subspace import Update
from regrad.settings import Location
from regrad.training.lora.lora_artifact import ADAPTER_CARD, StaticLora, corpus_costs

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


def needed_adapter(settings: MethodSettings) -> str:
    """Where the static LoRA is; raises `MethodError` if the settings do not say."""
    return settings.needed("adapter", "a LoRA of `regrad finetune`")


class StaticLoraConfig(MethodSettings):
    """cpt, instruction-cpt, ft-direct, ft-rag, rag-gd-base: one LoRA of `regrad finetune`."""

    METHODS: ClassVar = (
        MethodInfo("cpt", "trained on the corpus", passages_in_prompt=False, update="static"),
        MethodInfo(
            "instruction-cpt", "trained on the corpus with questions", passages_in_prompt=False, update="static"
        ),
        MethodInfo("ft-direct", "fine-tuned on questions", passages_in_prompt=False, update="static"),
        MethodInfo("ft-rag", "fine-tuned on questions with passages", passages_in_prompt=True, update="static"),
        MethodInfo("rag-gd-base", "RAG-GD's adapter W0 without a step", passages_in_prompt=True, update="static"),
    )

    adapter: Location | None = Field(None, description="a static LoRA of `regrad finetune`")

    @property
    def artefacts(self) -> Artefacts:
        """See `MethodSettings`."""
        return Artefacts(adapter=self.adapter)

    def costs(self) -> PassageCosts:
        """See `MethodSettings`: of a LoRA trained on a corpus; one trained on questions prepares no passage."""
        trained = corpus_costs(self.adapter) if self.adapter else None
        return PassageCosts(trained.preparation_ms, trained.storage_bytes) if trained else PassageCosts()

    def check(self) -> None:
        """See `MethodSettings`."""
        ADAPTER_CARD.read(needed_adapter(self))

    def open(self, lm: LanguageModel) -> Method:
        """See `MethodSettings`."""
        static = StaticLora.load(needed_adapter(self))
        static.check_base(lm)
        return StaticMethod(self, Update(static.subspace, static.values))


class StaticMethod(Method):
    """The same update for every question."""

    def __init__(self, settings: MethodSettings, update: Update) -> None:
        super().__init__(settings)
        self._updates = (update,)

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        """See `Method`."""
        return [Plan(self.prompt(evidence), self._updates) for evidence in evidences]
