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

from regrad.data.questions import Question
from regrad.errors import ModelError
from regrad.inference.rows import Finished
from regrad.methods.base import Evidence, Plan
from regrad.methods.reading import AnswerBatch, LikelihoodReader
from regrad.retrieval.config import OneByOneConfig

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel
    from regrad.prompts import PromptFormat


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


def log_prior(settings: OneByOneConfig, scores: Sequence[float], trained_at: float | None) -> Tensor:
    """log p(h|x) [K]: a softmax of the retrieval scores over the settings' temperature, or the index's own, or 1."""
    return (torch.tensor(scores) / (settings.temperature or trained_at or 1.0)).log_softmax(0)


def marginal_scores(log_prior_K: Tensor, likelihood_NK: Tensor) -> Tensor:
    """log p(y|x) of each answer [N]: log of the sum over passages of p(h|x) p(y|x, h)."""
    return (log_prior_K + likelihood_NK).logsumexp(1)


def different(answers: Sequence[Finished]) -> list[str]:
    """The answers' texts, each once."""
    return list(dict.fromkeys(answer.text for answer in answers))


def without_each(log_prior_K: Tensor, likelihood_K: Tensor) -> list[float]:
    """How much log p(y|x) of one answer loses (nats) if each of at least two passages is left out, and p(h|x) of the
    others sums to 1 again."""
    total = float(marginal_scores(log_prior_K, likelihood_K[None]))
    left = []
    for place in range(len(log_prior_K)):
        kept = [other for other in range(len(log_prior_K)) if other != place]
        left.append(float(marginal_scores(log_prior_K[kept].log_softmax(0), likelihood_K[None, kept])))
    return [total - one for one in left]


def best_of(
    question: Question, log_prior_K: Tensor, answers: Sequence[Finished], likelihood_NK: Tensor | None
) -> Finished:
    """The answer with the largest marginal likelihood; its tokens are those of all.

    Passages and the answers with one of them each are in one order; `likelihood_NK` of the N different texts with each
    passage may be None if there is only one. Raises `ModelError` if one is not finite.
    """
    texts, best = different(answers), 0
    if likelihood_NK is not None:
        if not bool(log_prior_K.isfinite().all() and likelihood_NK.isfinite().all()):
            raise ModelError(
                f"the answers to {question.question!r:.80} with one passage each have no finite likelihoods; load the "
                "model in float32, or lower the method's gamma",
                code="likelihood_not_finite",
                question=question.question,
            )
        best = int(marginal_scores(log_prior_K, likelihood_NK).argmax())
    given = next(answer for answer in answers if answer.text == texts[best])
    return replace(
        given,
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
    )


class ReplyReader:
    """Reads answers with each of the passages, at most `batch_tokens` padded tokens in a pass. It runs the model."""

    def __init__(self, lm: LanguageModel, prompts: PromptFormat | None = None, batch_tokens: int = 16384) -> None:
        self._reader = LikelihoodReader(lm, batch_tokens, prompts, decoded=True)

    def likelihoods(self, settings: OneByOneConfig, plans: Sequence[Plan], texts: Sequence[str]) -> Tensor:
        """log p(y|x, h) [N, K] of N texts under K plans with one passage each."""
        pairs = [(plan, text) for text in texts for plan in plans]
        reduction = _reduction(settings)
        read = self._reader.log_likelihoods([plan for plan, _ in pairs], [text for _, text in pairs], reduction)
        return read.reshape(len(texts), len(plans))

    def batches(self, plans: Sequence[Plan], text: str) -> list[AnswerBatch]:
        """What is read of a text with each of the passages, pass by pass; it does not run the model."""
        return list(self._reader.batches(plans, [text] * len(plans)))

    def read(self, settings: OneByOneConfig, batch: AnswerBatch) -> Tensor:
        """log p(y|x, h) [n] of one pass, on the CPU."""
        return self._reader.read(batch, _reduction(settings))


def _reduction(settings: OneByOneConfig) -> str:
    return "mean" if settings.per_token else "sum"
