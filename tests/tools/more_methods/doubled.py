"""A family of methods added as docs/extending.md says: twice the sum of the passages' gradients.

`tests/unit/methods/test_extending.py` puts this folder beside the package's own modules, and asks them like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from regrad.bank.config import OnMissing
from regrad.bank.format import BankKind
from regrad.meta_init import MetaInit
from regrad.methods.base import Artefacts, AtomProvider, BankNeed, Evidence, Method, MethodInfo, Plan
from regrad.methods.policies import BankAtoms, BankSettings, handle_missing
from regrad.methods.regrad import BoundMetaInit
from regrad.settings import Location

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


class DoubledConfig(BankSettings):
    """doubled, doubled+icl: a MetaInit and a bank of its gradients."""

    KIND: ClassVar[BankKind] = "gradient"
    FOLLOWS_RELEASE: ClassVar[bool] = True
    METHODS: ClassVar = (
        MethodInfo("doubled", "twice the gradients", passages_in_prompt=False, update="doubled"),
        MethodInfo("doubled+icl", "the same, with the passages", passages_in_prompt=True, update="gradients"),
    )

    meta_init: Location = Field("", description="a MetaInit of `regrad train`")
    on_missing: OnMissing = "fewer"

    @property
    def artefacts(self) -> Artefacts:
        return Artefacts(meta_init=self.meta_init or None, bank=self.bank, bank_version=self.bank_version)

    def bank_need(self, parts: bool) -> BankNeed:
        return BankNeed.SUM

    def check(self) -> None:
        self.bank_manifest()

    def open(self, lm: LanguageModel) -> Method:
        return self.open_at(BoundMetaInit(lm, MetaInit.load(self.meta_init)))

    def open_at(self, bound: BoundMetaInit) -> Method:
        return Doubled(self, bound)


class Doubled(Method):
    def __init__(self, settings: DoubledConfig, bound: BoundMetaInit) -> None:
        super().__init__(settings)
        self._settings, self._bound = settings, bound

    def open_atoms(self) -> AtomProvider:
        return BankAtoms(self._settings, self._bound.fingerprint)

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        plans = []
        for evidence, found in zip(evidences, atoms.find(evidences, parts=False), strict=True):
            handled = handle_missing(found, evidence.passages, self._settings.on_missing, "gradient")
            total_P = handled.atoms.total
            updates = () if total_P is None else (self._bound.update(total_P, 2.0 * evidence.gamma),)
            plans.append(Plan(self.prompt(evidence), updates, handled.notes, handled.atoms.uses))
        return plans
