"""Test-time adaptation: n gradient steps on the retrieved passages, for one question.

They are in the prompt, too, unless `in_prompt: false` has the model answer from what it has just been trained on alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from regrad.adaptation.online import adapt_online
from regrad.config import AdamWConfig, MethodConfig
from regrad.language_model.loading import LanguageModel
from regrad.methods.base import Method
from regrad.methods.updates import Asked, Made, Updates

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
