"""How likely given answers are under plans: the model reads each behind its plan's prompt, under the plan's updates.

What decoding would give probability to is read here in one pass: for training by the answer's likelihood, and for
answers that several passages vote on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regrad.errors import PromptTooLong
from regrad.methods.base import Plan
from regrad.models.batching import TokenBatch, pad_batch, row_chunks, sequence_losses
from regrad.models.subspace import Subspace

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel
    from regrad.prompts import PromptFormat


@dataclass(frozen=True)
class AnswerBatch:
    """Some of the plans that were asked about: their places among all, and prompt and answer as one row each."""

    places: tuple[int, ...]
    plans: tuple[Plan, ...]
    tokens: TokenBatch

    @property
    def acted_on(self) -> Tensor | None:
        """The tokens that the plans' updates act on [N, T - 1]: a plan's all on the same. None if on everything."""
        on_answer = [any(update.acts_on == "answer" for update in plan.updates) for plan in self.plans]
        if not any(on_answer):
            return None
        everything_N1 = ~torch.tensor(on_answer, device=self.tokens.ids.device)[:, None]
        return self.tokens.predicted[:, 1:] | everything_N1

    def updates(self) -> dict[Subspace, Tensor]:
        """The plans' updates by subspace [N, P]; zeros, which change nothing, for a plan without one."""
        found = {}
        for subspace in dict.fromkeys(update.subspace for plan in self.plans for update in plan.updates):
            rows_NP = torch.zeros(len(self.plans), subspace.size)
            for row, plan in enumerate(self.plans):
                for update in plan.updates:
                    if update.subspace == subspace:
                        rows_NP[row] += update.vector
            found[subspace] = rows_NP.to(self.tokens.ids.device)
        return found


class LikelihoodReader:
    """Reads answers with one model, at most `batch_tokens` padded tokens at a time; its own prompts without others.

    `decoded` answers were made with one of the plans each, whose prompts are known to fit. A passage stays in its
    prompt then, and an answer is read as far as it fits behind the longest of its prompts, lest reading fail where
    decoding did not: written anew, and with its end, it may have a token more.
    """

    def __init__(
        self, lm: LanguageModel, batch_tokens: int, prompts: PromptFormat | None = None, decoded: bool = False
    ) -> None:
        self._lm, self._batch_tokens, self._prompts = lm, batch_tokens, prompts or lm.config.prompts
        self._decoded = decoded

    def batches(self, plans: Sequence[Plan], answers: Sequence[str]) -> Iterator[AnswerBatch]:
        """Rows of similar length together; a passage that does not fit is left out of the prompt.

        Raises `PromptTooLong` where question and answer alone do not fit; of `decoded` answers see the class.
        """
        rows = [self._tokens(*pair) for pair in zip(plans, answers, strict=True)]
        if self._decoded:
            rows = self._cut(rows, answers)
        batch = pad_batch([ids for ids, _ in rows], [start for _, start in rows], self._lm.pad_id, self._lm.device)
        for chunk in row_chunks(batch, self._batch_tokens):
            places = tuple(chunk.tolist())
            yield AnswerBatch(places, tuple(plans[place] for place in places), batch.take(chunk))

    def log_likelihoods(
        self,
        plans: Sequence[Plan],
        answers: Sequence[str],
        reduction: str = "sum",
        beside: Mapping[Subspace, Tensor] | None = None,
    ) -> Tensor:
        """log p(answer | prompt, updates) [N] float32 on the CPU; with `mean`, divided by the answer's tokens.

        The end of the answer is one of them. `beside` are updates [P] that all are read with. Raises as `batches`.
        """
        found_N = torch.empty(len(plans))
        for batch in self.batches(plans, answers):
            found_N[list(batch.places)] = self.read(batch, reduction, beside)
        return found_N

    @torch.no_grad()
    def read(
        self, batch: AnswerBatch, reduction: str = "sum", beside: Mapping[Subspace, Tensor] | None = None
    ) -> Tensor:
        """The log-likelihoods [n] of one pass of `batches`, as `log_likelihoods`."""
        return -self.losses(batch, {**batch.updates(), **(beside or {})}, reduction).float().cpu()

    def losses(self, batch: AnswerBatch, updates: Mapping[Subspace, Tensor], reduction: str) -> Tensor:
        """Minus the log-likelihoods [n] under these updates, differentiable with respect to them."""
        with self._lm.applied(updates, batch.acted_on):
            return sequence_losses(self._lm, batch.tokens, reduction)

    def _tokens(self, plan: Plan, answer: str) -> tuple[list[int], int]:
        """Prompt and answer, and where the answer begins."""
        prompts, prompt, raw = self._prompts, plan.prompt, plan.prompt.evidence.raw
        text = prompts.answer_text(answer) if raw else prompts.reply(answer)
        # Empty, and without its end where prompts have none, it would have no token to read, and be certain.
        ending = [*self._lm.encode(text), *self._lm.ending] or self._lm.eos
        ids = [*prompt.virtual, *self._lm.encode_prompt(prompt.text(prompts), raw)]
        tokens = len(ids) + len(ending)
        if self._decoded:
            return [*ids, *ending], len(ids)
        if prompt.passages and tokens > self._lm.within(tokens):
            ids = [*prompt.virtual, *self._lm.encode_prompt(replace(prompt, passages=()).text(prompts), raw)]
        try:
            self._lm.check_length(len(ids), len(ending))
        except PromptTooLong as error:
            asked = prompt.evidence.question.question
            raise PromptTooLong(
                f"the question {asked!r:.80} does not fit, even without passages; leave it out: {error}", question=asked
            ) from error
        return [*ids, *ending], len(ids)

    def _cut(self, rows: Sequence[tuple[list[int], int]], answers: Sequence[str]) -> list[tuple[list[int], int]]:
        """Each answer's tokens up to the number that fits behind all of its prompts."""
        room: dict[str, int] = {}
        for (ids, start), answer in zip(rows, answers, strict=True):
            fits = self._lm.within(len(ids)) - start
            room[answer] = min(fits, room.get(answer, fits))
        return [(ids[: start + room[answer]], start) for (ids, start), answer in zip(rows, answers, strict=True)]
