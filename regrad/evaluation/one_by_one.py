"""Answering with passages one by one: p(y|x) = sum over passages h of p(h|x) p(y|x, h).

An answer is decoded with each passage alone; each of the answers is then read with every passage, and the one with the
largest marginal likelihood is given: what RAG calls thorough decoding, over the retriever's k best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from regrad.inference.rows import DecodingRequest, Finished
from regrad.methods.base import AtomProvider, Evidence, Method, Plan
from regrad.methods.reading import LikelihoodReader
from regrad.models.loading import LanguageModel
from regrad.retrieval.config import OneByOneConfig

_BATCH_TOKENS = 16384

Fit = Callable[[Plan], tuple[Plan, DecodingRequest | None]]
"""A plan that fits the context, and what the model is asked: nothing if it does not know all of its tokens."""


def apart(evidence: Evidence) -> list[Evidence]:
    """The question with each of its passages alone; as it is if it has none."""
    if not evidence.passages:
        return [evidence]
    scores: list[tuple[float, ...]] = [(score,) for score in evidence.scores] or [()] * len(evidence.passages)
    pairs = zip(evidence.passages, scores, strict=True)
    return [replace(evidence, passages=(passage,), scores=score) for passage, score in pairs]


def marginal_scores(log_prior_K: Tensor, likelihood_NK: Tensor) -> Tensor:
    """log p(y|x) of each answer [N]: log of the sum over passages of p(h|x) p(y|x, h)."""
    return (log_prior_K + likelihood_NK).logsumexp(1)


class OneByOne:
    """Plans and answers of one method whose passages are read apart."""

    def __init__(self, lm: LanguageModel, settings: OneByOneConfig, method: Method, atoms: AtomProvider) -> None:
        self._settings, self._method, self._atoms = settings, method, atoms
        self._reader = LikelihoodReader(lm, _BATCH_TOKENS)

    def plans(self, evidences: Sequence[Evidence]) -> list[list[Plan]]:
        """For each question a plan with each of its passages alone, in order; raises what the method raises."""
        parts = [apart(evidence) for evidence in evidences]
        flat = iter(self._method.answer_plans([one for some in parts for one in some], self._atoms))
        return [list(islice(flat, len(some))) for some in parts]

    def answers(
        self,
        evidences: Sequence[Evidence],
        plans: Sequence[Sequence[Plan]],
        fit: Fit,
        decode: Callable[[Sequence[DecodingRequest]], list[Finished]],
    ) -> list[tuple[Plan, Finished | None]]:
        """For each question the answer with the largest marginal likelihood, and one plan that stands for all.

        The answer's tokens are those of all passages; None if the model could be asked with none of them.
        """
        fitted = [[fit(plan) for plan in some] for some in plans]
        made = iter(decode([request for some in fitted for _, request in some if request]))
        chosen = []
        for evidence, some in zip(evidences, fitted, strict=True):
            asked = [place for place, (_, request) in enumerate(some) if request]
            answers = [next(made) for _ in asked]
            best = self._best(evidence, [some[place][0] for place in asked], asked, answers)
            chosen.append((_together([plan for plan, _ in some]), best))
        return chosen

    def _best(
        self, evidence: Evidence, plans: Sequence[Plan], places: Sequence[int], answers: Sequence[Finished]
    ) -> Finished | None:
        if not answers:
            return None
        texts = list(dict.fromkeys(answer.text for answer in answers))
        best = 0
        if len(texts) > 1:
            scores = torch.tensor(evidence.scores or [0.0] * max(1, len(evidence.passages)))
            log_prior_K = (scores / self._settings.temperature).log_softmax(0)[list(places)]
            pairs = [(plan, text) for text in texts for plan in plans]
            read = self._reader.log_likelihoods(
                [plan for plan, _ in pairs],
                [text for _, text in pairs],
                "mean" if self._settings.per_token else "sum",
            )
            best = int(marginal_scores(log_prior_K, read.reshape(len(texts), -1)).argmax())
        given = next(answer for answer in answers if answer.text == texts[best])
        return replace(
            given,
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            completion_tokens=sum(answer.completion_tokens for answer in answers),
        )


def _together(plans: Sequence[Plan]) -> Plan:
    """The first plan, with the notes and the costs of all."""
    notes = tuple(dict.fromkeys(note for plan in plans for note in plan.notes))
    return replace(plans[0], notes=notes, bytes_fetched=sum(plan.bytes_fetched for plan in plans))
