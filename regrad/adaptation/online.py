"""Test-time adaptation: a few gradient steps on a question's own passages, then forgotten.

Each question's LoRA is a new row that starts from the same vector; the weights are never written, so there is nothing
to reset, and nothing of one question can reach the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from regrad.adaptation.examples import Example, longest, passage_example, suffix_example
from regrad.adaptation.rows import train_rows
from regrad.config import AdamWConfig
from regrad.corpus import Passage
from regrad.language_model.loading import LanguageModel

ADAPT_ON: dict[str, Callable[[LanguageModel, Passage], Example]] = {
    "passages": passage_example,
    "suffixes": suffix_example,
}


@dataclass(frozen=True)
class Adapted:
    """A question's LoRA [P], or None if it has no passage to adapt to; and what was left out, and why."""

    update: Tensor | None
    note: str = ""


def adapt_online(
    lm: LanguageModel,
    start_P: Tensor,
    questions: Sequence[Sequence[Passage]],
    steps: int,
    config: AdamWConfig,
    adapt_on: str = "passages",
) -> list[Adapted]:
    """`steps` AdamW steps for each question from `start_P`, each on all of the question's passages."""
    limit = longest(lm, 1 << 30)
    examples = [[ADAPT_ON[adapt_on](lm, passage) for passage in passages] for passages in questions]
    usable = [[item for item in items if item.predicts and len(item.ids) <= limit] for items in examples]
    plans = [[items] * steps if items else [] for items in usable]
    trained = train_rows(lm, start_P.expand(len(questions), -1), plans, config)
    return [
        Adapted(None if not kept or failed else value.float().cpu(), _note(len(items) - len(kept), failed))
        for value, items, kept, failed in zip(trained.values, examples, usable, trained.failed, strict=True)
    ]


def _note(left_out: int, failed: bool) -> str:
    if failed:
        return "a gradient is not finite: the base model answers"
    return f"{left_out} passages do not fit the model" if left_out else ""
