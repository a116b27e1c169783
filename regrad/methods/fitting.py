"""Prompts that fit the model's context: what evaluation and server do with a plan whose prompt is too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from regrad.errors import PromptTooLong
from regrad.methods.base import Note, Plan, Prompt
from regrad.prompts import PromptFormat, with_most_passages
from regrad.text import counted

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

OnOverflow = Literal["drop", "fail"]
"""What is done with a prompt that exceeds the context: its worst passages are left out, or it is refused."""


@dataclass(frozen=True)
class Fitted:
    """A plan whose prompt fits, and that prompt as text and as token ids, so that nothing has to write it again."""

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
            return text, self._lm.encode_prompt(text, prompt.evidence.raw)

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
