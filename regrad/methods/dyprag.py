"""DyPRAG (arXiv 2503.23895): the LoRAs of the retrieved passages, generated for the question by a trained network.

As PRAG, but no passage is trained on: `regrad translator` has learned from a bank of PRAG's adapters what training on
a passage gives, and the method reads each passage once instead. So passages that no training has seen have an update,
too.

With a `bank` that `regrad adapters` has filled by the same translator, the LoRAs of its passages are fetched, and those
of other passages are generated. The update is the same, to the precision of the bank's codec.

How several LoRAs become one is a setting. `sum` is the sum of their products with alpha / rank, as PRAG adds its
adapters. `released` is what DyPRAG's code does (github.com/Trae1ounG/DyPRAG at 8c999be): the mean of the A and the mean
of the B, and their product without alpha / rank. That is not the mean of the products, which has no terms of one
passage's B and another's A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from regrad.bank.config import OnMissing
from regrad.bank.format import BankKind
from regrad.data.passages import Passage
from regrad.errors import MethodError, TokenOutOfVocabulary
from regrad.gradients.extractor import Extracted
from regrad.methods.base import (
    Artefacts,
    AtomProvider,
    Atoms,
    Evidence,
    Method,
    MethodInfo,
    NoAtoms,
    PassageCosts,
    Plan,
)
from regrad.methods.policies import BankAtoms, BankSettings, handle_missing
from regrad.models.subspace import Subspace, Update
from regrad.settings import Location
from regrad.training.lora.lora_artifact import join
from regrad.training.translator.artifact import TRANSLATOR_CARD, Translator

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

Join = Literal["sum", "released"]


class DyPragConfig(BankSettings):
    """dyprag, dyprag+icl: a translator, and maybe a bank of LoRAs that it has generated."""

    KIND: ClassVar[BankKind] = "adapter"
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
    bank: Location | None = Field(
        None, description="a bank of LoRAs that `regrad adapters` generated with this translator; null: none are stored"
    )
    on_missing: OnMissing = Field(
        "online",
        description="for a passage that the bank lacks: generate its LoRA now, leave it out (fewer), answer by RAG or "
        "stop (fail)",
    )
    join: Join = Field(
        "sum",
        description="how several LoRAs become one; sum: of their products, with alpha / rank; released: the product of "
        "the mean A and the mean B, without alpha / rank, as in DyPRAG's code",
    )

    @property
    def artefacts(self) -> Artefacts:
        """See `MethodSettings`."""
        others = {"translator": self.translator} if self.translator else {}
        return Artefacts(bank=self.bank, bank_version=self.bank_version, others=others)

    def costs(self) -> PassageCosts:
        """See `MethodSettings`: without a bank nothing is prepared and nothing kept for a passage."""
        return super().costs() if self.bank else PassageCosts(0.0, 0.0)

    def check(self) -> None:
        """See `MethodSettings`; also whether this translator has filled the bank."""
        card = TRANSLATOR_CARD.read(self._needed())
        self._check_bank(card["digest"])

    def open(self, lm: LanguageModel) -> Method:
        """See `MethodSettings`. Raises `MethodError` or `ModelError` if the translator is another model's."""
        translator = Translator.load(self._needed())
        self._check_bank(translator.digest)
        return DyPrag(self, lm, translator)

    def _check_bank(self, digest: str) -> None:
        if self.bank is None or (found := self.bank_manifest().translator) == digest:
            return
        made = f"that translator {found} generated" if found else "that were trained"
        raise MethodError(
            f"the bank at {self.bank} holds adapters {made}, but the translator at {self.translator} is {digest}; fill "
            "a bank with `regrad adapters` and this translator, or leave out 'bank'",
            code="bank_of_another_translator",
            uri=self.bank,
            expected=digest,
            found=found,
        )

    def _needed(self) -> str:
        return self.needed("translator", "of `regrad translator`")


class DyPrag(Method):
    """What the translator makes of each of a question's passages, or has made of it for the bank, joined."""

    def __init__(self, settings: DyPragConfig, lm: LanguageModel, translator: Translator) -> None:
        super().__init__(settings)
        translator.check_base(lm)
        lm.lora_for(translator.subspace)
        self._lm, self._translator, self._settings = lm, translator, settings

    def open_atoms(self) -> AtomProvider:
        """See `Method`."""
        return BankAtoms(self._settings) if self._settings.bank else NoAtoms()

    def runs_model(self, atoms: Atoms) -> bool:
        """See `Method`. With a bank it does for what that lacks."""
        return self._settings.bank is None or (self._settings.on_missing == "online" and bool(atoms.missing))

    @property
    def needs_passages(self) -> bool:
        """See `Method`."""
        return self._settings.bank is not None and self._settings.on_missing == "fail"

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        """See `Method`. Raises `ModelError` if a state is not finite."""
        # Questions that are asked together share passages: each is read once.
        generate = cache(self._generated)
        found = atoms.find(evidences, parts=True)
        return [self._plan(*pair, generate) for pair in zip(evidences, found, strict=True)]

    def _generated(self, passage: Passage) -> Extracted:
        try:
            return Extracted(passage, self._translator.lora_of(self._lm, passage))
        except TokenOutOfVocabulary:
            return Extracted(passage, problem="the model lacks a token of the passage")

    def _plan(self, evidence: Evidence, found: Atoms, generate: Callable[[Passage], Extracted]) -> Plan:
        settings = self._settings
        policy = settings.on_missing if settings.bank else "online"
        handled = handle_missing(
            found, evidence.passages, policy, "adapter", lambda missing: [generate(passage) for passage in missing]
        )
        atoms = handled.atoms
        updates: tuple[Update, ...] = ()
        if atoms.parts is not None and not handled.by_rag:
            updates = (joined(self._translator.subspace, list(atoms.parts), settings.join, evidence.gamma),)
        prompt = self.prompt(evidence, atoms.uses, handled.by_rag)
        if settings.bank:
            return Plan(prompt, updates, handled.notes, atoms.uses, bytes_fetched=atoms.bytes)
        # Where nothing is stored, that a LoRA was generated now is no deviation.
        return Plan(prompt, updates, tuple(note for note in handled.notes if note.policy != "online"))


def joined(subspace: Subspace, loras: Sequence[Tensor], how: Join, gamma: float = 1.0) -> Update:
    """One update of several LoRAs [P], `gamma` times what `how` makes of them; see the module."""
    if how == "sum":
        ((within, vector_P),) = join([(subspace, lora) for lora in loras], [gamma] * len(loras)).items()
        return Update(within, vector_P)
    within = Subspace(subspace.modules, subspace.rank, 1.0)
    ((_, vector_P),) = join([(within, torch.stack(list(loras)).mean(0))], [gamma]).items()
    return Update(within, vector_P)
