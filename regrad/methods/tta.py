"""Test-time adaptation: n gradient steps on the retrieved passages, for one question.

They are in the prompt, too, unless `in_prompt: false` has the model answer from what it has just been trained on alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from regrad.data.passages import Passage
from regrad.methods.base import Asked, Made, Method, Updates
from regrad.methods.config import MethodConfig
from regrad.models.loading import LanguageModel
from regrad.training.lora.batched import train_rows
from regrad.training.lora.config import AdamWConfig
from regrad.training.lora.examples import Example, longest, passage_example, suffix_example

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


TTA = Method("tta", "trained on the passages for this question", passages_in_prompt=True, update="adapting")


def open_adapting(config: MethodConfig, lm: LanguageModel) -> Updates:
    """Updates that are trained for each question from the same start."""
    return AdaptingUpdates(config, lm)


class AdaptingUpdates:
    """Every question starts from the same LoRA, which does nothing yet, and is forgotten afterwards."""

    def __init__(self, config: MethodConfig, lm: LanguageModel) -> None:
        self._lm, self._config = lm, config
        self._start_P = lm.subspace.initial(config.seed).to(lm.device)
        self._optimizer = AdamWConfig(lr=config.lr)

    def __call__(self, asked: Sequence[Asked]) -> Made:
        """See `Updates`."""
        config = self._config
        found = adapt_online(
            self._lm,
            self._start_P,
            [item.passages for item in asked],
            config.steps,
            self._optimizer,
            config.adapt_on,
        )
        return Made([item.update for item in found], [0] * len(asked), [item.note for item in found])
