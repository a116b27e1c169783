"""Prompt tuning: virtual tokens, trained on questions with passages, before every prompt of the base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
    PassageUse,
    Plan,
    Prompt,
)
from regrad.settings import Location
from regrad.training.lora.soft_prompt import SOFT_PROMPT_CARD, SoftPrompt, soft_prompt_costs

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


class PromptTuningConfig(MethodSettings):
    """prompt-tuning: a soft prompt of `regrad finetune`."""

    METHODS: ClassVar = (
        MethodInfo("prompt-tuning", "RAG behind virtual tokens that were trained", passages_in_prompt=True),
    )

    soft_prompt: Location | None = Field(None, description="a soft prompt of `regrad finetune`")

    @property
    def _place(self) -> str:
        return self.needed("soft_prompt", "a soft prompt of `regrad finetune` (its setting soft_prompt)")

    @property
    def artefacts(self) -> Artefacts:
        """See `MethodSettings`."""
        return Artefacts(others={"soft_prompt": self.soft_prompt} if self.soft_prompt else {})

    def costs(self) -> PassageCosts:
        """See `MethodSettings`: as those of a static LoRA, nothing for any passage if it was trained on questions."""
        trained = soft_prompt_costs(self.soft_prompt) if self.soft_prompt else None
        return PassageCosts(trained.preparation_ms, trained.storage_bytes) if trained else PassageCosts()

    def check(self) -> None:
        """See `MethodSettings`."""
        SOFT_PROMPT_CARD.read(self._place)

    def open(self, lm: LanguageModel) -> Method:
        """See `MethodSettings`."""
        return PromptTuning(self, SoftPrompt.load(self._place).put(lm))


class PromptTuning(Method):
    """The same virtual tokens before every prompt, and the base model as it is."""

    def __init__(self, settings: MethodSettings, virtual: tuple[int, ...]) -> None:
        super().__init__(settings)
        self._virtual = virtual

    def prompt(self, evidence: Evidence, uses: Sequence[PassageUse] = (), by_rag: bool = False) -> Prompt:
        """See `Method`."""
        return replace(super().prompt(evidence, uses, by_rag), virtual=self._virtual)

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        """See `Method`."""
        return [Plan(self.prompt(evidence)) for evidence in evidences]
