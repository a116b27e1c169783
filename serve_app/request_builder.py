"""What the generator does with a request before and after decoding: its prompt, its update, and what to say of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regrad.data.passages import Passage
from regrad.errors import AtomNotFound, FingerprintMismatch, NothingFound
from regrad.inference.rows import DecodingRequest, Finished
from regrad.methods.base import Method
from regrad.methods.registry import get_method
from regrad.methods.regrad import Knowledge
from regrad.prompts import PromptFormat
from serve_app.config import ServeConfig
from serve_app.messages import Ask, Degraded, GradientSum, PassageUse, Retrieved


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to be decoded; `parts` [K, P] are the gradients of the passages in `uses` with a tier."""

    request: DecodingRequest
    uses: tuple[PassageUse, ...] = ()
    degraded: tuple[Degraded, ...] = ()
    parts: Tensor | None = None


class Desk:
    """Prepares requests of one release. `prepare` may run the model: call it between decoding steps."""

    def __init__(self, knowledge: Knowledge, prompts: PromptFormat, config: ServeConfig) -> None:
        self.knowledge, self._prompts, self._policy = knowledge, prompts, config.on_missing

    def needs_model(self, ask: Ask, gradients: GradientSum | None) -> bool:
        """Whether `prepare` will run the model, to compute gradients."""
        missing = gradients is not None and any(not use.tier and not use.deleted for use in gradients.uses)
        asked = get_method(ask.method).computes_gradients or (missing and self._policy == "online")
        return asked and _knows_deletions(gradients)

    def prepare(self, ask: Ask, retrieved: Retrieved | None, gradients: GradientSum | None) -> Prepared:
        """Prompt and update by the request's method, or by the policy where gradients are missing.

        Raises `NothingFound` if the method needs passages and there are none, `AtomNotFound` by the policy `fail`,
        `FingerprintMismatch` or `BankError` for gradients of something else.
        """
        method = get_method(ask.method)
        passages = [hit.passage for hit in retrieved.hits] if retrieved else []
        if method.retrieves and not passages:
            raise NothingFound("no passage of the index matches the question")
        if not method.applies_gradients:
            return Prepared(self._request(ask, method, passages, None))
        had = self._had(method, passages, gradients)
        return self._with_gradients(ask, method, passages, had, gradients)

    def _had(self, method: Method, passages: list[Passage], gradients: GradientSum | None) -> GradientSum:
        """What the bank gave; for a method that computes, no more than what was deleted from it."""
        if gradients is None or method.computes_gradients:
            unknown = not _knows_deletions(gradients)
            told = {use.id: use for use in gradients.uses if use.deleted or unknown} if gradients else {}
            uses = tuple(told.get(p.id) or PassageUse(p.id, problem="not asked for") for p in passages)
            version = gradients.bank_version if gradients else ""
            return GradientSum(torch.zeros(0), self.knowledge.fingerprint, version, uses, 0.0)
        if gradients.fingerprint != self.knowledge.fingerprint:
            raise FingerprintMismatch(gradients.fingerprint, self.knowledge.fingerprint)
        return gradients

    def _with_gradients(
        self, ask: Ask, method: Method, passages: list[Passage], had: GradientSum, gradients: GradientSum | None
    ) -> Prepared:
        parts, may_compute = (gradients.parts if gradients else None), _knows_deletions(gradients)
        uses, total, degraded = had.uses, had.total.float(), list[Degraded]()
        missing = [i for i, use in enumerate(uses) if not use.tier]
        if missing and not method.computes_gradients and self._policy == "fail":
            raise AtomNotFound(_reason([uses[i] for i in missing]))
        if missing and not method.computes_gradients and self._policy == "rag":
            degraded.append(_degraded("rag", [uses[i] for i in missing]))
            return Prepared(self._request(ask, get_method("rag"), _kept(passages, uses), None), uses, tuple(degraded))
        computes = method.computes_gradients or self._policy == "online"
        if missing and computes and may_compute:
            uses, total, parts = self._computed(passages, uses, total, parts)
            if not method.computes_gradients:
                degraded.append(_degraded("online", [had.uses[i] for i in missing if uses[i].tier]))
        if absent := [use for use in uses if not use.tier]:
            degraded.append(_degraded("fewer", absent))
        update = self.knowledge.update(total, ask.gamma) if any(use.tier for use in uses) else None
        request = self._request(ask, method, _kept(passages, uses), update)
        return Prepared(request, uses, tuple(d for d in degraded if d.passage_ids), parts)

    def _computed(
        self, passages: list[Passage], uses: tuple[PassageUse, ...], total_P: Tensor, parts: Tensor | None
    ) -> tuple[tuple[PassageUse, ...], Tensor, Tensor | None]:
        """Uses, sum and parts with the missing gradients computed now; what was deleted from the bank stays out."""
        todo = [i for i, use in enumerate(uses) if not use.tier and not use.deleted]
        found = dict(zip(todo, self.knowledge.compute([passages[i] for i in todo]), strict=True))
        atoms = {i: item.atom for i, item in found.items() if item.atom is not None}
        kept = iter(parts if parts is not None else ())
        rows = [atoms[i] if i in atoms else next(kept, None) for i, use in enumerate(uses) if use.tier or i in atoms]
        total_P = sum(atoms.values(), total_P if total_P.numel() else torch.zeros(()))
        uses = tuple(
            replace(use, tier="online", problem="")
            if i in atoms
            else replace(use, problem=found[i].problem)
            if i in found
            else use
            for i, use in enumerate(uses)
        )
        known = [row for row in rows if row is not None]
        return uses, total_P, torch.stack([row.float() for row in known]) if len(known) == len(rows) != 0 else None

    def _request(self, ask: Ask, method: Method, passages: list[Passage], update: Tensor | None) -> DecodingRequest:
        in_prompt = method.in_prompt(passages)
        if ask.raw:
            prompt = self._prompts.context_text(in_prompt) + ask.question
        else:
            earlier = self._prompts.conversation([(turn.role, turn.content) for turn in ask.turns])
            prompt = earlier + self._prompts.prompt(ask.question, in_prompt)
        s = ask.sampling
        return DecodingRequest(prompt, update, s.max_new_tokens, s.temperature, s.top_p, s.seed, s.stop, ask.raw)

    def contributions(self, ask: Ask, prepared: Prepared, finished: Finished) -> tuple[PassageUse, ...]:
        """The uses with each passage's part in the answer. Runs the model for `leave_one_out`."""
        if ask.contributions is None or prepared.parts is None or prepared.request.update is None:
            return prepared.uses
        if ask.contributions == "norms":
            values = self.knowledge.norms(prepared.parts, ask.gamma)
        else:
            request = prepared.request
            ended = finished.reason == "stop" and request.stop is None
            parts, gamma = prepared.parts, ask.gamma
            values = self.knowledge.leave_one_out(request.prompt, finished.text, parts, gamma, ended, request.raw)
        left = iter(values)
        return tuple(replace(use, contribution=next(left)) if use.tier else use for use in prepared.uses)


def _knows_deletions(gradients: GradientSum | None) -> bool:
    """Whether the bank was read (or never asked): only then may a gradient be computed without reviving a passage."""
    return gradients is None or bool(gradients.bank_version)


def _kept(passages: list[Passage], uses: tuple[PassageUse, ...]) -> list[Passage]:
    """Without those that were deleted from the bank: an index that still has them must not bring them back."""
    return [passage for passage, use in zip(passages, uses, strict=True) if not use.deleted]


def _reason(uses: list[PassageUse]) -> str:
    first = uses[0]
    more = f" (and {len(uses) - 1} more)" if len(uses) > 1 else ""
    return f"no gradient for passage {first.id!r}{more}: {first.problem}"


def _degraded(policy: str, uses: list[PassageUse]) -> Degraded:
    return Degraded(policy, _reason(uses) if uses else "", tuple(use.id for use in uses))
