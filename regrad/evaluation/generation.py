"""Answers of many prompts, each under its own update, at once: the decoding engine without its thread.

Rows leave the batch as they finish and others take their place, so short answers do not wait for long ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from regrad.errors import EvaluationError
from regrad.evaluation.config import EvalBatchConfig
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest, Finished
from regrad.methods.base import Prompt
from regrad.models.loading import LanguageModel
from regrad.text import counted


class Generator:
    """Greedy answers of one model; for one thread."""

    def __init__(self, lm: LanguageModel, config: EvalBatchConfig) -> None:
        self._engine = Engine(lm, config.rows, config.cached_tokens)

    def answers(self, prompts: Sequence[str], updates: Sequence[Tensor | None], max_new_tokens: int) -> list[Finished]:
        """In order. Raises `PromptTooLong` for a prompt that was not fitted."""
        found: dict[int, Finished] = {}
        for number, (prompt, update) in enumerate(zip(prompts, updates, strict=True)):
            self._engine.submit(DecodingRequest(prompt, update, max_new_tokens), _keep(found, number))
        while self._engine.step():
            pass
        return [found[number] for number in range(len(prompts))]


def _keep(found: dict[int, Finished], number: int) -> Callable[[str | Finished | Exception], None]:
    def listen(heard: str | Finished | Exception) -> None:
        if isinstance(heard, Finished):
            found[number] = heard

    return listen


@dataclass(frozen=True)
class Fitted:
    """A prompt that fits the context, and how many of its passages had to go."""

    prompt: str
    dropped: int


def fit(
    lm: LanguageModel,
    prompt: Prompt,
    max_new_tokens: int,
    most_tokens: int | None,
    drop: bool,
) -> Fitted:
    """The prompt with as many of its passages as fit, best first; its demonstrations stay.

    Raises `EvaluationError` if one must go and may not (`drop`), or if the question alone is too long, or together with
    its demonstrations.
    """
    passages, demonstrations = len(prompt.passages), len(prompt.evidence.demonstrations)
    limits = [limit for limit in (most_tokens, lm.context_length) if limit is not None]
    for kept in range(passages, -1, -1):
        text = prompt.shortened(kept).text(lm.config.prompts)
        tokens = len(lm.encode_prompt(text)) + max_new_tokens
        if not limits or tokens <= min(limits):
            return Fitted(text, passages - kept)
        if not drop:
            break
    shown = ", ".join([counted(kept, "passage")] + [counted(demonstrations, "demonstration")] * bool(demonstrations))
    raise EvaluationError(
        f"a prompt with {shown} and its answer take {tokens} tokens, but the context is {min(limits)}: "
        + ("set too_long=drop, or lower k" if kept else _shorter(demonstrations))
    )


def _shorter(demonstrations: int) -> str:
    """What helps where there is no passage left to drop."""
    if demonstrations:
        return "ask for fewer demonstrations, which are never dropped, or for shorter ones, or lower max_new_tokens"
    return "lower max_new_tokens, or leave the question out"
