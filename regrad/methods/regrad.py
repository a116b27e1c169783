"""ReGrad: the update phi0 - gamma * alpha * sum of the passages' gradients, from a bank or computed now.

Settings, then a MetaInit on its base model, which computes gradients and makes updates of them, then the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from regrad.bank.config import OnMissing
from regrad.bank.format import BankKind
from regrad.data.passages import Passage
from regrad.errors import BankError, FingerprintMismatch, MetaInitError, MethodError
from regrad.gradients.extractor import AtomExtractor, Extracted
from regrad.gradients.merging import MERGES
from regrad.meta_init import MetaInit, read_card
from regrad.methods.base import (
    Artefacts,
    AtomProvider,
    Atoms,
    BankNeed,
    Contributions,
    Evidence,
    Method,
    MethodInfo,
    MethodSettings,
    NoAtoms,
    PassageUse,
    Plan,
)
from regrad.methods.policies import BankAtoms, BankSettings, check_scores, handle_missing
from regrad.models.batching import pad_batch, sequence_losses
from regrad.models.config import SubspaceConfig
from regrad.models.subspace import Subspace, Update
from regrad.settings import Location, invalid

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel


class GradientSettings(MethodSettings):
    """Settings of every method that applies gradients at a MetaInit."""

    FOLLOWS_RELEASE: ClassVar[bool] = True

    meta_init: Location | None = Field(None, description="a MetaInit of `regrad train`")
    gamma: float = Field(1.0, ge=0, description="scale of the update")
    weighting: str = Field("sum", description="how several gradients become one (regrad.gradients.merging.MERGES)")

    @field_validator("weighting")
    @classmethod
    def _known(cls, weighting: str) -> str:
        try:
            MERGES.check(weighting)
        except MethodError as error:
            raise invalid("unknown_weighting", str(error), near=str(error.fields.get("near", ""))) from error
        return weighting

    @property
    def artefacts(self) -> Artefacts:
        """See `MethodSettings`."""
        return Artefacts(meta_init=self.meta_init)

    @property
    def needs_parts(self) -> bool:
        """Whether the gradients are needed one by one: only a plain sum can be computed where they are fetched."""
        return self.weighting != "sum"

    def bank_need(self, parts: bool) -> BankNeed:
        """See `MethodSettings`."""
        if self.info.computes_gradients:
            return BankNeed.DELETIONS
        return BankNeed.PARTS if parts or self.needs_parts else BankNeed.SUM  # a sum is one vector, whatever k is

    def needed_meta_init(self) -> str:
        """Where the MetaInit is; raises `MethodError` if the settings do not say."""
        return self.needed("meta_init", "which `regrad train` makes")

    def check(self) -> None:
        """See `MethodSettings`."""
        read_card(self.needed_meta_init())

    def check_fits(self, target: SubspaceConfig) -> None:
        """See `MethodSettings`. A MetaInit has the model's own rank and scale."""
        uri = self.needed_meta_init()
        found = _subspace_of(read_card(uri), uri)
        if (found.rank, found.scaling) != (target.rank, target.scaling):
            raise MetaInitError(
                f"{self.name}: the MetaInit at {uri} has rank {found.rank} and scale {found.scaling:g}, but the "
                f"model's settings have rank {target.rank} and scale {target.scaling:g}; set model.subspace as it was "
                "when the MetaInit was trained",
                code="other_subspace",
                uri=uri,
                rank=found.rank,
                scale=found.scaling,
            )

    def open(self, lm: LanguageModel) -> ReGrad:
        """See `MethodSettings`. Raises `MetaInitError` if the model is not the MetaInit's base."""
        return self.open_at(BoundMetaInit(lm, MetaInit.load(self.needed_meta_init())))

    def open_at(self, bound: BoundMetaInit) -> ReGrad:
        """See `MethodSettings`."""
        return ReGrad(self, bound)


class ReGradOnlineConfig(GradientSettings):
    """regrad-online: every gradient is computed for the question."""

    METHODS: ClassVar = (
        MethodInfo(
            "regrad-online",
            "gradients computed now, nothing in the prompt",
            passages_in_prompt=False,
            update="gradients-now",
        ),
    )


class ReGradConfig(GradientSettings, BankSettings):
    """regrad, regrad+icl: gradients from a bank of this MetaInit."""

    KIND: ClassVar[BankKind] = "gradient"
    METHODS: ClassVar = (
        MethodInfo("regrad", "gradients applied, nothing in the prompt", passages_in_prompt=False, update="gradients"),
        MethodInfo(
            "regrad+icl", "gradients applied, passages in the prompt", passages_in_prompt=True, update="gradients"
        ),
    )

    @property
    def artefacts(self) -> Artefacts:
        """See `MethodSettings`."""
        return Artefacts(meta_init=self.meta_init, bank=self.bank, bank_version=self.bank_version)

    def check(self) -> None:
        """See `MethodSettings`; also whether the bank belongs to the MetaInit."""
        fingerprint = str(read_card(self.needed_meta_init())["fingerprint"])
        manifest = self.bank_manifest()
        if manifest.fingerprint != fingerprint:
            raise FingerprintMismatch(manifest.fingerprint, fingerprint)


class BoundMetaInit:
    """One MetaInit bound to its base model. Raises `MetaInitError` if the model is not its base.

    `compute` and `losses` run the model, so they must not run at the same time as anything else on it.
    """

    def __init__(self, lm: LanguageModel, meta_init: MetaInit) -> None:
        meta_init.check_base(lm)
        self._lm = lm
        self._meta_init = meta_init

    @cached_property
    def fingerprint(self) -> str:
        """The MetaInit's fingerprint."""
        return self._meta_init.fingerprint

    @cached_property
    def _extractor(self) -> AtomExtractor:
        return AtomExtractor(self._lm, self._meta_init)

    def at(self, phi0_P: Tensor) -> BoundMetaInit:
        """The same step sizes on the same model, which was checked, with another phi0."""
        other = copy(self)
        other._meta_init = replace(self._meta_init, phi0=phi0_P)
        other.__dict__.pop("fingerprint", None)
        other.__dict__["_extractor"] = self._extractor.at(phi0_P)
        return other

    def compute(self, passages: Sequence[Passage]) -> list[Extracted]:
        """The passages' atoms, computed now (ReGrad Online), or for each the reason why it has none."""
        return self._extractor.extract(passages)

    def update(self, total_P: Tensor, gamma: float) -> Update:
        """See `MetaInit.update`."""
        meta_init = self._meta_init
        return Update(meta_init.subspace, meta_init.update(total_P, gamma), meta_init.acts_on)

    def norms(self, parts_KP: Tensor, gamma: float) -> list[float]:
        """The Euclidean norm of each passage's step, gamma * alpha * gradient."""
        norms: list[float] = (gamma * self._meta_init.alpha_P * parts_KP.float()).norm(dim=1).tolist()
        return norms

    @torch.inference_mode()
    def losses(
        self, prompt: str, answer: str, updates: Sequence[Tensor], ended: bool = True, raw: bool = False
    ) -> list[float]:
        """Minus the log-probability (natural log) of the answer under each of the updates.

        If the answer `ended` with the model's stop string, that counts as part of it; a `raw` prompt has no template.
        """
        start = self._lm.encode_prompt(prompt, raw)
        prompts = self._lm.config.prompts
        text = prompts.answer_text(answer) if raw else prompts.reply(answer)
        rest = self._lm.encode(text + (prompts.stop if ended else ""))
        updates_UP = torch.stack(list(updates)).to(self._lm.device)
        if self._meta_init.acts_on == "answer":
            # Here, as it brings transformers: seconds, in each process that plans and has no model.
            from regrad.inference.answer_losses import answer_losses

            return answer_losses(self._lm, start, rest, updates_UP).tolist()  # type: ignore[no-any-return]
        batch = pad_batch([start + rest] * len(updates), [len(start)] * len(updates), self._lm.pad_id, self._lm.device)
        # One text under several updates: the blocks that none of them reaches are run for one.
        entered_1TD = self._lm.blocks.enter(batch.ids[:1, :-1])
        if entered_1TD is not None:
            batch = replace(batch, entered=entered_1TD.expand(len(updates), -1, -1))
        with self._lm.lora.applied(updates_UP):
            losses: list[float] = sequence_losses(self._lm, batch, "sum").tolist()
        return losses


class ReGrad(Method):
    """phi0 - gamma * alpha * merged gradients; without a gradient of any of its passages, the base model answers."""

    def __init__(self, settings: GradientSettings, bound: BoundMetaInit) -> None:
        super().__init__(settings)
        self._settings = settings
        self.bound = bound
        self._merge = MERGES[settings.weighting]
        self._policy: OnMissing = settings.on_missing if isinstance(settings, BankSettings) else "online"

    def open_atoms(self) -> AtomProvider:
        """See `Method`."""
        if isinstance(self._settings, BankSettings):
            return BankAtoms(self._settings, self.bound.fingerprint)
        return NoAtoms()

    def runs_model(self, atoms: Atoms) -> bool:
        """See `Method`."""
        computable = any(not atoms.uses[place].deleted for place in atoms.missing)
        return computable and self._policy == "online" and atoms.knows_deletions

    @property
    def needs_passages(self) -> bool:
        """See `Method`."""
        return self._policy == "fail"

    def plan(self, evidences: Sequence[Evidence], atoms: AtomProvider) -> list[Plan]:
        """See `Method`."""
        check_scores(evidences)
        found = atoms.find(evidences, self._settings.needs_parts)
        return [self._plan(*pair) for pair in zip(evidences, found, strict=True)]

    def _plan(self, evidence: Evidence, found: Atoms) -> Plan:
        handled = handle_missing(found, evidence.passages, self._policy, "gradient", self.bound.compute)
        atoms = handled.atoms
        notes = handled.notes
        prompt = self.prompt(evidence, atoms.uses, handled.by_rag)
        if self._info.computes_gradients:  # then computing is the method itself, and nothing to note
            notes = tuple(note for note in notes if note.policy != "online")
        if handled.by_rag or atoms.total is None:
            return Plan(prompt, (), notes, atoms.uses, bytes_fetched=atoms.bytes)
        merged_P = atoms.total
        if self._settings.needs_parts:
            merged_P = self._merge(_single(atoms.parts), _scores(evidence, atoms.uses))
        update = self.bound.update(merged_P, self._gamma(evidence))
        return Plan(prompt, (update,), notes, atoms.uses, atoms.parts, atoms.bytes)

    def contributions(
        self, how: Contributions, plan: Plan, prompt: str, answer: str, ended: bool
    ) -> Sequence[float] | None:
        """See `Method`: none without the single gradients."""
        if plan.parts is None:
            return None
        return self.norms(plan) if how == "norms" else self.leave_one_out(plan, prompt, answer, ended)

    def norms(self, plan: Plan) -> list[float]:
        """The norm of each passage's step, for a plan of this method that has the single gradients."""
        return self.bound.norms(_single(plan.parts), self._gamma(plan.prompt.evidence))

    def leave_one_out(self, plan: Plan, prompt: str, answer: str, ended: bool = True) -> list[float]:
        """How much log-probability (natural log) the answer loses if each one of the gradients is left out.

        If the answer `ended` with the model's stop string, that counts as part of it.
        """
        evidence = plan.prompt.evidence
        parts_KP = _single(plan.parts)
        places = list(range(len(parts_KP)))
        scores = _scores(evidence, plan.uses)
        updates = []
        # All of them first, as the reference, then all but one: a single batch gives every loss.
        for kept in [places, *([i for i in places if i != left] for left in places)]:
            merged_P = torch.zeros_like(parts_KP[0])
            if kept:
                merged_P = self._merge(parts_KP[kept], [scores[i] for i in kept])
            updates.append(self.bound.update(merged_P, self._gamma(evidence)).vector)
        losses = self.bound.losses(prompt, answer, updates, ended, evidence.raw)
        return [loss - losses[0] for loss in losses[1:]]

    def _gamma(self, evidence: Evidence) -> float:
        return self._settings.gamma * evidence.gamma


def _single(parts_KP: Tensor | None) -> Tensor:
    """The gradients one by one in float32; raises `BankError` if only their sum is known."""
    if parts_KP is None:
        raise BankError("expected the gradients one by one, found only their sum", code="only_a_sum")
    return parts_KP.float()


def _scores(evidence: Evidence, uses: Sequence[PassageUse]) -> list[float]:
    """The scores of the passages that have a gradient; 1 for all if the evidence has no scores."""
    scores = evidence.scores or (1.0,) * len(evidence.passages)
    return [score for score, use in zip(scores, uses, strict=True) if not use.missing]


def _subspace_of(card: Mapping[str, Any], uri: str) -> Subspace:
    """The subspace that a MetaInit's card names; raises `MethodError` if it cannot be read."""
    try:
        return Subspace.from_json(card["subspace"])
    except (KeyError, TypeError, ValueError) as error:
        raise MethodError(
            f"the card at {uri} is damaged: its subspace cannot be read", code="card_damaged", uri=uri
        ) from error
