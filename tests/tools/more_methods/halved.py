"""A family without gradients: half of a static LoRA, with the passages in the prompt or without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from regrad.methods.base import Artefacts, AtomProvider, Evidence, Method, MethodInfo, MethodSettings, Plan
from regrad.models.subspace import Subspace, Update
from regrad.settings import Location
from regrad.training.lora.lora_artifact import ADAPTER_CARD, StaticLora

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


class HalvedConfig(MethodSettings):
    """halved, halved+icl: one LoRA of `regrad finetune`."""

    METHODS: ClassVar = (
        MethodInfo("halved", "half of a static LoRA", passages_in_prompt=False, update="static"),
        MethodInfo("halved+icl", "the same, with the passages", passages_in_prompt=True, update="static"),
    )

    adapter: Location | None = Field(None, description="a static LoRA of `regrad finetune`")

    @property
    def artefacts(self) -> Artefacts:
        return Artefacts(adapter=self.adapter)

    def check(self) -> None:
        ADAPTER_CARD.read(self.needed("adapter", "a LoRA of `regrad finetune`"))

    def open(self, lm: LanguageModel) -> Method:
        static = StaticLora.load(self.needed("adapter", "a LoRA of `regrad finetune`"))
        static.check_base(lm)
        halved = Subspace(static.subspace.modules, static.subspace.rank, static.subspace.scaling / 2)
        return Halved(self, Update(halved, static.values))


class Halved(Method):
    def __init__(self, settings: HalvedConfig, update: Update) -> None:
        super().__init__(settings)
        self._update = update

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        return [Plan(self.prompt(evidence), (self._update,)) for evidence in evidences]
