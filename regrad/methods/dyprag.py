"""DyPRAG (arXiv 2503.23895): the LoRAs of the retrieved passages, generated for the question by a trained network.

As PRAG, but nothing is kept for a passage: `regrad translator` has learned from a bank of PRAG's adapters what
training on a passage gives, and the method reads each passage once instead. So passages that no training has seen have
an update, too.

How several LoRAs become one is a setting. `sum` is the sum of their products with alpha / rank, as PRAG adds its
adapters. `released` is what DyPRAG's code does (github.com/Trae1ounG/DyPRAG at 8c999be): the mean of the A and the mean
of the B, and their product without alpha / rank. That is not the mean of the products, which has no terms of one
passage's B and another's A.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from regrad.data.passages import Passage
from regrad.errors import TokenOutOfVocabulary
from regrad.methods.base import (
    Artefacts,
    AtomProvider,
    Atoms,
    Evidence,
    Method,
    MethodInfo,
    MethodSettings,
    Note,
    PassageCosts,
    Plan,
)
from regrad.models.subspace import Subspace, Update
from regrad.settings import Location
from regrad.training.lora.lora_artifact import join
from regrad.training.translator.artifact import TRANSLATOR_CARD, Translator

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

Join = Literal["sum", "released"]


class DyPragConfig(MethodSettings):
    """dyprag, dyprag+icl: a translator; no bank."""

    METHODS: ClassVar = (
        MethodInfo(
            "dyprag",
            "LoRAs generated from the passages, nothing in the prompt",
            passages_in_prompt=False,
            update="predicted",
        ),
        MethodInfo(
            "dyprag+icl",
            "LoRAs generated from the passages, and passages in the prompt",
            passages_in_prompt=True,
            update="predicted",
        ),
    )

    translator: Location | None = Field(None, description="a translator of `regrad translator`")
    join: Join = Field(
        "sum",
        description="how several LoRAs become one; sum: of their products, with alpha / rank; released: the product of "
        "the mean A and the mean B, without alpha / rank, as in DyPRAG's code",
    )

    @property
    def artefacts(self) -> Artefacts:
        """See `MethodSettings`."""
        return Artefacts(others={"translator": self.translator} if self.translator else {})

    def costs(self) -> PassageCosts:
        """See `MethodSettings`: nothing is prepared and nothing kept for a passage."""
        return PassageCosts(0.0, 0.0)

    def check(self) -> None:
        """See `MethodSettings`."""
        TRANSLATOR_CARD.read(self._needed())

    def open(self, lm: LanguageModel) -> Method:
        """See `MethodSettings`. Raises `MethodError` or `ModelError` if the translator is another model's."""
        return DyPrag(self, lm, Translator.load(self._needed()))

    def _needed(self) -> str:
        return self.needed("translator", "of `regrad translator`")


class DyPrag(Method):
    """What the translator makes of each of a question's passages, joined."""

    def __init__(self, settings: DyPragConfig, lm: LanguageModel, translator: Translator) -> None:
        super().__init__(settings)
        translator.check_base(lm)
        lm.lora_for(translator.subspace)
        self._lm, self._translator, self._join = lm, translator, settings.join

    def runs_model(self, atoms: Atoms) -> bool:
        """See `Method`."""
        return True

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        """See `Method`. Raises `ModelError` if a state is not finite."""
        # Questions that are asked together share passages: each is read once.
        different = dict.fromkeys(passage for evidence in evidences for passage in evidence.passages)
        loras = {passage: self._lora(passage) for passage in different}
        return [self._plan(evidence, [loras[passage] for passage in evidence.passages]) for evidence in evidences]

    def _lora(self, passage: Passage) -> Tensor | None:
        try:
            return self._translator.lora_of(self._lm, passage)
        except TokenOutOfVocabulary:
            return None

    def _plan(self, evidence: Evidence, loras: Sequence[Tensor | None]) -> Plan:
        found = [lora for lora in loras if lora is not None]
        left_out = [passage.id for passage, lora in zip(evidence.passages, loras, strict=True) if lora is None]
        notes = (Note("fewer", "the model lacks a token of the passage", tuple(left_out)),) if left_out else ()
        updates = (joined(self._translator.subspace, found, self._join, evidence.gamma),) if found else ()
        return Plan(self.prompt(evidence), updates, notes)


def joined(subspace: Subspace, loras: Sequence[Tensor], how: Join, gamma: float = 1.0) -> Update:
    """One update of several LoRAs [P], `gamma` times what `how` makes of them; see the module."""
    if how == "sum":
        ((within, vector_P),) = join([(subspace, lora) for lora in loras], [gamma] * len(loras)).items()
        return Update(within, vector_P)
    within = Subspace(subspace.modules, subspace.rank, 1.0)
    ((_, vector_P),) = join([(within, torch.stack(list(loras)).mean(0))], [gamma]).items()
    return Update(within, vector_P)
