"""Answering with passages one by one: p(y|x) = sum over passages h of p(h|x) p(y|x, h).

An answer is decoded with each passage alone; each of the answers is then read with every passage, and the one with the
largest marginal likelihood is given: what RAG calls thorough decoding, over the retriever's k best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regrad.inference.rows import Finished
from regrad.methods.base import Evidence, Plan
from regrad.methods.reading import LikelihoodReader
from regrad.retrieval.config import OneByOneConfig

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel
    from regrad.prompts import PromptFormat

_BATCH_TOKENS = 16384


def apart(evidence: Evidence) -> list[Evidence]:
    """The question with each of its passages alone; as it is if it has none."""
    if not evidence.passages:
        return [evidence]
    scores: list[tuple[float, ...]] = [(score,) for score in evidence.scores] or [()] * len(evidence.passages)
    pairs = zip(evidence.passages, scores, strict=True)
    return [replace(evidence, passages=(passage,), scores=score) for passage, score in pairs]


def together(plans: Sequence[Plan]) -> Plan:
    """The first plan, with the notes, the uses and the costs of all."""
    notes = tuple(dict.fromkeys(note for plan in plans for note in plan.notes))
    uses = tuple(use for plan in plans for use in plan.uses)
    return replace(plans[0], notes=notes, uses=uses, bytes_fetched=sum(plan.bytes_fetched for plan in plans))


def marginal_scores(log_prior_K: Tensor, likelihood_NK: Tensor) -> Tensor:
    """log p(y|x) of each answer [N]: log of the sum over passages of p(h|x) p(y|x, h)."""
    return (log_prior_K + likelihood_NK).logsumexp(1)


class AnswerChooser:
    """Chooses among answers that were decoded with one passage each. It runs the model."""

    def __init__(self, lm: LanguageModel, prompts: PromptFormat | None = None) -> None:
        self._reader = LikelihoodReader(lm, _BATCH_TOKENS, prompts)

    def best(
        self, settings: OneByOneConfig, scores: Sequence[float], plans: Sequence[Plan], answers: Sequence[Finished]
    ) -> Finished:
        """That with the largest marginal likelihood; its tokens are those of all.

        The retrieval `scores` of the passages, the plans with one of them each and the answers are in one order.
        """
        texts = list(dict.fromkeys(answer.text for answer in answers))
        best = 0
        if len(texts) > 1:
            log_prior_K = (torch.tensor(scores) / settings.temperature).log_softmax(0)
            pairs = [(plan, text) for text in texts for plan in plans]
            reduction = "mean" if settings.per_token else "sum"
            read = self._reader.log_likelihoods([plan for plan, _ in pairs], [text for _, text in pairs], reduction)
            best = int(marginal_scores(log_prior_K, read.reshape(len(texts), -1)).argmax())
        given = next(answer for answer in answers if answer.text == texts[best])
        return replace(
            given,
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            completion_tokens=sum(answer.completion_tokens for answer in answers),
        )
