"""Methods without an update: the base model alone, and passages in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from regrad.methods.base import AtomProvider, Evidence, Method, MethodInfo, MethodSettings, Plan

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


class PromptOnlyConfig(MethodSettings):
    """direct, rag, pe-rag: nothing is needed."""

    METHODS: ClassVar = (
        MethodInfo("direct", "the base model alone", passages_in_prompt=False),
        MethodInfo("rag", "passages in the prompt", passages_in_prompt=True),
        MethodInfo("pe-rag", "passages in a prompt with more instruction", passages_in_prompt=True, style="pe"),
    )

    def open(self, lm: LanguageModel) -> Method:
        """See `MethodSettings`."""
        return PromptOnly(self)


class PromptOnly(Method):
    """A prompt, and the base model as it is."""

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        """See `Method`."""
        return [Plan(self.prompt(evidence)) for evidence in evidences]
