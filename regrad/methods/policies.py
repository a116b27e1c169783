"""Two policies that evaluation and server share: for atoms that a bank lacks, and for prompts that exceed the context.

Evaluation reads a bank here (`BankAtoms`); a server's bank loader reads and sums atoms in its own process and passes
the sum on as another provider. `handle_missing` (`on_missing`) and `PromptFitter` (`on_overflow`) are one for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from regrad.bank.builder import read_preparation
from regrad.bank.config import OnMissing, TiersConfig
from regrad.bank.format import BankKind, Manifest, current_version, read_manifest
from regrad.bank.reader import BankReader, Fetched
from regrad.bank.tiers import Tier
from regrad.data.passages import Passage
from regrad.errors import AtomNotFound, MethodError, PromptTooLong
from regrad.gradients.extractor import Extracted
from regrad.methods.base import (
    Atoms,
    BankState,
    Evidence,
    MethodSettings,
    Note,
    PassageCosts,
    PassageUse,
    Plan,
    Prompt,
)
from regrad.prompts import PromptFormat, with_most_passages
from regrad.settings import Location
from regrad.storage import Storage
from regrad.text import counted

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

_VERBS: dict[BankKind, str] = {"gradient": "build", "adapter": "adapters"}
_PATIENT = TiersConfig(deadline_seconds=300.0)  # no user is waiting, and a late atom must not count as a missing one

OnOverflow = Literal["drop", "fail"]
"""What is done with a prompt that exceeds the context: its worst passages are left out, or it is refused."""

Compute = Callable[[Sequence[Passage]], list[Extracted]]
"""Computes the atoms of passages now, or says for each why it has none."""


class BankSettings(MethodSettings):
    """Settings of every method that reads a bank; `KIND` is what the bank must hold."""

    # One policy and one default for evaluation and server: a method's scores and answers are its own, whatever its bank
    # happens to lack. Adapters cannot be computed for a question, so their default is `fewer`.

    KIND: ClassVar[BankKind]

    bank: Location | None = Field(None, description="a bank of gradients (regrad) or of trained adapters (prag)")
    bank_version: int | None = Field(None, ge=1, description="the current one if null")
    on_missing: OnMissing = Field(
        "online",
        description="for a passage without an atom: compute it now, leave it out (fewer), answer by RAG or stop (fail)",
    )

    def bank_manifest(self) -> Manifest:
        """The manifest of the method's bank; raises `MethodError` if there is no bank or it is of the other kind."""
        command = f"`regrad {_VERBS[self.KIND]}`"
        storage = Storage(self.needed("bank", f"a bank of {self.KIND}s that {command} fills"))
        version = self.bank_version or current_version(storage)
        if version is None:
            raise MethodError(
                f"there is no bank at {self.bank}; fill one with {command}", code="bank_not_found", uri=self.bank
            )
        manifest = read_manifest(storage, version)
        if manifest.kind != self.KIND:
            raise MethodError(
                f"method {self.kind} ({self.name}) needs a bank of {self.KIND}s, but the one at {self.bank} holds "
                f"{manifest.kind}s; fill another one with {command}",
                code="wrong_bank",
                expected=self.KIND,
                found=manifest.kind,
            )
        return manifest

    def costs(self) -> PassageCosts:
        """See `MethodSettings`: the time that the bank's version took, and the size of a record."""
        if self.bank is None:
            return PassageCosts()
        manifest = read_manifest(Storage(self.bank), self.bank_version)
        preparation = read_preparation(self.bank, manifest.version)
        milliseconds = preparation.milliseconds_per_passage if preparation else None
        return PassageCosts(milliseconds, float(manifest.record_bytes))

    @property
    def leaves_out(self) -> bool:
        """See `MethodSettings`."""
        return self.on_missing in ("fewer", "rag")

    def check_covers(self, passages: Sequence[Passage]) -> None:
        """See `MethodSettings`. Reads no atom; checks nothing if missing atoms are computed or stop the run."""
        if self.bank is None or not self.leaves_out or not passages:
            return
        with BankReader(self.bank, None, self.bank_version) as reader:
            for passage in passages:
                location = reader.locate(passage.id)
                if location is not None and location.entry.belongs_to(passage.text_hash):
                    return
        raise self.covers_nothing(passages)

    def covers_nothing(self, passages: Sequence[Passage]) -> MethodError:
        """The error of a bank without an atom of any of these passages."""
        computes = "online" in get_args(type(self).model_fields["on_missing"].annotation)
        online = ", or set on_missing=online, which computes what is missing" if computes else ""
        return MethodError(
            f"{self.name}: the bank at {self.bank} has no atom of any of the {len(passages)} passages of the first "
            f"questions (the first is {passages[0].id!r:.80}), or only atoms of other texts, so every question would "
            f"be answered without; fill a bank of this corpus with `regrad {_VERBS[self.KIND]}`{online}",
            code="bank_of_other_passages",
            uri=self.bank,
            passages=len(passages),
        )


class BankAtoms:
    """The atoms of a method's bank, for callers that can wait for them."""

    def __init__(self, settings: BankSettings, fingerprint: str | None = None) -> None:
        self._reader = BankReader(settings.bank or "", fingerprint, settings.bank_version, _PATIENT)
        self._settings = settings
        # Whether the bank has been seen to hold passages of these questions; it matters if others are left out.
        self._covers = not settings.leaves_out

    def find(self, evidences: Sequence[Evidence], parts: bool) -> list[Atoms]:
        """See `AtomProvider`.

        Raises `MethodError` if the policy leaves out what is missing, and the bank has no atom for any of the first
        questions that have passages; `AtomDamaged` or `StorageError` for an atom that exists but cannot be read.
        """
        found = [self._of(evidence.passages, parts) for evidence in evidences]
        passages = [passage for evidence in evidences for passage in evidence.passages]
        if passages and not self._covers:
            if all(item.total is None for item in found):
                raise self._settings.covers_nothing(passages)
            self._covers = True
        return found

    def _of(self, passages: Sequence[Passage], parts: bool) -> Atoms:
        fetched = self._reader.fetch(passages)
        for passage, item in zip(passages, fetched, strict=True):
            # Left out, or computed in another precision, it would change a score that is then kept.
            if item.record is None and item.error is not AtomNotFound:
                raise item.error(
                    f"the bank at {self._reader.uri} has no atom for passage {passage.id!r}: {item.problem}",
                    code="unreadable_atom",
                    passage_id=passage.id,
                    problem=item.problem,
                )
        uses = tuple(use_of(passage.id, item) for passage, item in zip(passages, fetched, strict=True))
        records = [item.record for item in fetched if item.record is not None]
        if not records:
            return Atoms(uses, bank=BankState.READ)
        codec = self._reader.codec
        rows_KP = codec.decode(torch.stack(records)) if parts else None
        return Atoms(uses, codec.sum(records), rows_KP, len(records) * codec.record_bytes, BankState.READ)


def use_of(passage_id: str, item: Fetched) -> PassageUse:
    """How a passage that was looked up in a bank is used."""
    return PassageUse(passage_id, item.tier, item.problem, deleted=item.deleted)


@dataclass(frozen=True)
class Handled:
    """A question's atoms after the policy was applied; with `by_rag` they are not to be applied, and RAG answers."""

    atoms: Atoms
    notes: tuple[Note, ...] = ()
    by_rag: bool = False


def handle_missing(
    found: Atoms, passages: Sequence[Passage], policy: OnMissing, kind: BankKind, compute: Compute | None = None
) -> Handled:
    """Apply the policy to the passages without an atom; raises `AtomNotFound` if the policy is `fail`.

    With `online`, what cannot be computed is left out and noted, and so is what may have been deleted.
    """
    missing = found.missing
    if not missing:
        return Handled(found)
    absent = [found.uses[place] for place in missing]
    if policy == "fail":
        ids = [use.id for use in absent]
        raise AtomNotFound(_reason(absent, kind), bank_kind=kind, passage_ids=ids, problem=absent[0].problem)
    if policy == "rag":
        return Handled(found, (_note("rag", absent, kind),), by_rag=True)
    notes = []
    if policy == "online" and compute and found.knows_deletions:
        completed = _with_computed(found, passages, compute)
        if computed := [found.uses[place] for place in missing if not completed.uses[place].missing]:
            notes.append(_note("online", computed, kind))
        found = completed
    if absent := [found.uses[place] for place in found.missing]:
        notes.append(_note("fewer", absent, kind))
    return Handled(found, tuple(notes))


def _with_computed(found: Atoms, passages: Sequence[Passage], compute: Compute) -> Atoms:
    """The atoms with those of the missing passages, except deleted ones, computed now, each in its place."""
    todo = [place for place in found.missing if not found.uses[place].deleted]
    if not todo:
        return found
    computed = dict(zip(todo, compute([passages[place] for place in todo]), strict=True))
    uses = list(found.uses)
    rows: list[Tensor | None] = []
    total = found.total
    known = iter(found.parts if found.parts is not None else ())
    for place, use in enumerate(found.uses):
        if not use.missing:
            rows.append(next(known, None))
        elif place in computed:
            atom = computed[place].atom
            if atom is None:
                uses[place] = replace(use, problem=computed[place].problem)
                continue
            uses[place] = replace(use, tier=Tier.ONLINE, problem="")
            rows.append(atom)
            total = atom if total is None else total + atom
    # A provider that gave only a sum has no single atoms, so there are none for the whole question either.
    singles = [row for row in rows if row is not None]
    parts = torch.stack([row.float() for row in singles]) if singles and len(singles) == len(rows) else None
    return replace(found, uses=tuple(uses), total=total, parts=parts)


def _reason(uses: Sequence[PassageUse], kind: BankKind) -> str:
    more = f" (and {len(uses) - 1} more)" if len(uses) > 1 else ""
    return f"no {kind} for passage {uses[0].id!r}{more}: {uses[0].problem}"


def _note(policy: OnMissing, uses: Sequence[PassageUse], kind: BankKind) -> Note:
    return Note(policy, _reason(uses, kind), tuple(use.id for use in uses))


def check_scores(evidences: Sequence[Evidence]) -> None:
    """Raise `MethodError` unless every question has a score for each of its passages, or none at all."""
    for item in evidences:
        if item.scores and len(item.scores) != len(item.passages):
            raise MethodError(
                f"expected a score for every passage or none, found {len(item.passages)} passages and "
                f"{len(item.scores)} scores",
                code="scores_do_not_match",
                passages=len(item.passages),
                scores=len(item.scores),
            )


@dataclass(frozen=True)
class Fitted:
    """A plan whose prompt fits, and that prompt as text and as token ids, virtual ones included, so that nothing has to
    write it again.
    """

    plan: Plan
    text: str
    ids: tuple[int, ...]


class PromptFitter:
    """Makes prompts fit a model's context, or `context_tokens` if that is less, for one policy.

    `prompts` are the templates that the prompts are written by; the model's own may be others.
    """

    def __init__(
        self, lm: LanguageModel, prompts: PromptFormat, policy: OnOverflow, context_tokens: int | None = None
    ) -> None:
        self._lm = lm
        self._prompts = prompts
        self._policy = policy
        limits = [limit for limit in (context_tokens, lm.context_length) if limit is not None]
        self._context = min(limits) if limits else None

    def fitted(self, plan: Plan, max_new_tokens: int) -> Fitted:
        """The plan with as many of its prompt's passages as fit, best first, and a note if some had to be left out.

        Its updates stay those of all passages; its demonstrations are never left out. Raises `PromptTooLong` if the
        prompt does not fit without any passage, or with all of them under the policy `fail`; and
        `TokenOutOfVocabulary`.
        """
        prompt, passages = plan.prompt, len(plan.prompt.passages)

        def write(kept: int) -> tuple[str, list[int]]:
            text = prompt.shortened(kept).text(self._prompts)
            return text, [*prompt.virtual, *self._lm.encode_prompt(text, prompt.evidence.raw)]

        def fits(written: tuple[str, Sequence[int]]) -> bool:
            return self._context is None or len(written[1]) + max_new_tokens <= self._context

        if self._policy == "drop":
            kept, written = with_most_passages(passages, write, fits)
        else:
            kept, written = passages, write(passages)
        text, ids = written
        if not fits(written):
            raise self._too_long(prompt.shortened(kept), len(ids), max_new_tokens)
        if kept == passages:
            return Fitted(plan, text, tuple(ids))
        left_out = tuple(passage.id for passage in prompt.passages[kept:])
        note = Note("drop", f"{len(left_out)} of {passages} passages did not fit into the prompt", left_out)
        plan = replace(plan, prompt=prompt.shortened(kept), notes=(*plan.notes, note))
        return Fitted(plan, text, tuple(ids))

    def _too_long(self, prompt: Prompt, tokens: int, max_new_tokens: int) -> PromptTooLong:
        passages, demonstrations = len(prompt.passages), len(prompt.evidence.demonstrations)
        shown = [counted(passages, "passage")] + [counted(demonstrations, "demonstration")] * bool(demonstrations)
        if passages:
            remedy = "ask with fewer passages (k), or set on_overflow=drop"
        elif demonstrations:
            remedy = "show fewer demonstrations, which are never left out, or shorter ones, or lower max_new_tokens"
        else:
            remedy = "ask a shorter question, or lower max_new_tokens"
        return PromptTooLong(
            f"a prompt with {', '.join(shown)} has {tokens} tokens and {max_new_tokens} may be added, but the context "
            f"is {self._context}: {remedy}",
            passages=passages,
            demonstrations=demonstrations,
            prompt_tokens=tokens,
            max_new_tokens=max_new_tokens,
            context=self._context,
        )
