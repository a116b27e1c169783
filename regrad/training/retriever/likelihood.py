"""How likely an answer is with one passage: log p(y|x, h), by the same method that will answer.

A method plans a prompt and updates for a question with this passage alone, as it does in an evaluation, and the frozen
generator reads the answer behind it. `rag` puts the passage into the prompt; `regrad` applies its gradient.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from regrad.bank.tiers import Tier
from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import TrainingError
from regrad.gradients.extractor import Extracted
from regrad.methods.base import AtomProvider, Atoms, Evidence, MethodSettings, PassageUse, Plan
from regrad.methods.regrad import BoundMetaInit, ReGrad
from regrad.models.batching import TokenBatch, pad_batch, row_chunks, sequence_losses
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace

_PLANNED = 64  # pairs whose updates are in memory at once
_ATOM_BYTES = 1 << 28


class Likelihood(Protocol):
    """Log-likelihoods of answers, each with one passage."""

    def of(self, pairs: Sequence[tuple[Question, Passage]]) -> Tensor:
        """log p(first answer | question, passage) [N] float32, on the CPU."""


class MethodLikelihood:
    """The likelihood under one method; `per_token` divides it by the answer's tokens, the end of the answer included.

    Raises what opening the method raises.
    """

    def __init__(self, lm: LanguageModel, settings: MethodSettings, per_token: bool, batch_tokens: int) -> None:
        self._lm = lm
        method = settings.open(lm)
        self._atoms: AtomProvider = method.open_atoms()
        if isinstance(method, ReGrad) and settings.info.computes_gradients:
            self._atoms = ComputedAtoms(method.bound)
        self._method = method
        self._reduction = "mean" if per_token else "sum"
        self._batch_tokens = batch_tokens

    def of(self, pairs: Sequence[tuple[Question, Passage]]) -> Tensor:
        """See `Likelihood`. Raises `TrainingError` if one is not finite, and `PromptTooLong`."""
        parts = [self._of(pairs[start : start + _PLANNED]) for start in range(0, len(pairs), _PLANNED)]
        return torch.cat(parts) if parts else torch.zeros(0)

    def _of(self, pairs: Sequence[tuple[Question, Passage]]) -> Tensor:
        evidences = [Evidence(question, (passage,), (1.0,)) for question, passage in pairs]
        plans = self._method.answer_plans(evidences, self._atoms)
        rows = [self._tokens(plan) for plan in plans]
        batch = pad_batch([ids for ids, _ in rows], [start for _, start in rows], self._lm.pad_id, self._lm.device)
        found_N = torch.empty(len(pairs))
        with torch.no_grad():
            for chunk in row_chunks(batch, self._batch_tokens):
                some, tokens = [plans[row] for row in chunk.tolist()], batch.take(chunk)
                with self._lm.applied(_stacked(some, self._lm.device), _acted_on(some, tokens)):
                    found_N[chunk.cpu()] = -sequence_losses(self._lm, tokens, self._reduction).float().cpu()
        if not bool(torch.isfinite(found_N).all()):
            question, passage = pairs[int(torch.isfinite(found_N).logical_not().nonzero()[0])]
            raise TrainingError(
                f"the answer to {question.question!r:.80} has no finite likelihood with passage {passage.id!r:.80}; "
                "load the model in float32, or lower the method's gamma",
                code="likelihood_not_finite",
                question=question.question,
                passage_id=passage.id,
            )
        return found_N

    def _tokens(self, plan: Plan) -> tuple[list[int], int]:
        """Prompt and answer, and where the answer begins; a passage that does not fit is left out of the prompt."""
        prompts, prompt = self._lm.config.prompts, plan.prompt
        answer = [*self._lm.encode(prompts.reply(prompt.evidence.question.answers[0])), *self._lm.ending]
        ids = self._lm.encode_prompt(prompt.text(prompts))
        tokens = len(ids) + len(answer)
        if prompt.passages and tokens > self._lm.within(tokens):
            ids = self._lm.encode_prompt(replace(prompt, passages=()).text(prompts))
        self._lm.check_length(len(ids), len(answer))
        return [*ids, *answer], len(ids)


def _stacked(plans: Sequence[Plan], device: torch.device) -> dict[Subspace, Tensor]:
    """The plans' updates by subspace [N, P]; zeros, which change nothing, for a plan without one."""
    subspaces = dict.fromkeys(update.subspace for plan in plans for update in plan.updates)
    found = {}
    for subspace in subspaces:
        rows_NP = torch.zeros(len(plans), subspace.size)
        for row, plan in enumerate(plans):
            for update in plan.updates:
                if update.subspace == subspace:
                    rows_NP[row] += update.vector
        found[subspace] = rows_NP.to(device)
    return found


def _acted_on(plans: Sequence[Plan], batch: TokenBatch) -> Tensor | None:
    """The tokens that the plans' updates act on [N, T - 1]: a plan's all on the same. None if all act on everything."""
    on_answer = [any(update.acts_on == "answer" for update in plan.updates) for plan in plans]
    if not any(on_answer):
        return None
    return batch.predicted[:, 1:] | ~torch.tensor(on_answer, device=batch.ids.device)[:, None]


@dataclass
class ComputedAtoms:
    """Atoms computed when they are first asked for, many passages at once; the latest are kept, up to 256 MB."""

    bound: BoundMetaInit

    def __post_init__(self) -> None:
        self._kept: OrderedDict[str, Extracted] = OrderedDict()

    def find(self, evidences: Sequence[Evidence], parts: bool) -> list[Atoms]:
        """See `AtomProvider`: one passage for each question."""
        asked = {evidence.passages[0].id: evidence.passages[0] for evidence in evidences}
        missing = [passage for name, passage in asked.items() if name not in self._kept]
        self._kept.update((item.passage.id, item) for item in self.bound.compute(missing))
        found = []
        for evidence in evidences:
            item = self._kept[evidence.passages[0].id]
            self._kept.move_to_end(item.passage.id)
            tier = Tier.MISSING if item.atom is None else Tier.ONLINE
            use = PassageUse(item.passage.id, tier, item.problem)
            single = None if item.atom is None or not parts else item.atom[None]
            found.append(Atoms((use,), item.atom, single))
        self._forget()
        return found

    def _forget(self) -> None:
        sizes = [0 if item.atom is None else 4 * item.atom.numel() for item in self._kept.values()]
        kept = sum(sizes)
        for size in sizes:
            if kept <= _ATOM_BYTES:
                break
            self._kept.popitem(last=False)
            kept -= size
