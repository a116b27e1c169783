"""The answers of a method that reads passages one by one, of many questions at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from regrad.inference.rows import DecodingRequest, Finished
from regrad.methods.base import AtomProvider, Evidence, Method, Plan
from regrad.methods.one_by_one import ReplyReader, apart, best_of, different, log_prior, together
from regrad.models.loading import LanguageModel
from regrad.retrieval.config import OneByOneConfig

Fit = Callable[[Plan], tuple[Plan, DecodingRequest | None]]
"""A plan that fits the context, and what the model is asked: nothing if it does not know all of its tokens."""


class OneByOne:
    """Plans and answers of one method whose passages are read apart; `trained_at` is the index's temperature."""

    def __init__(
        self,
        lm: LanguageModel,
        settings: OneByOneConfig,
        method: Method,
        atoms: AtomProvider,
        trained_at: float | None = None,
    ) -> None:
        self._settings, self._method, self._atoms, self._trained_at = settings, method, atoms, trained_at
        self._reader = ReplyReader(lm)

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
        finished: Callable[[], None] = lambda: None,
    ) -> list[tuple[Plan, Finished | None]]:
        """For each question the answer with the largest marginal likelihood, and one plan that stands for all.

        The answer's tokens are those of all passages; None if the model could be asked with none of them. `finished` is
        called after each question that was asked.
        """
        fitted = [[fit(plan) for plan in some] for some in plans]
        made = iter(decode([request for some in fitted for _, request in some if request]))
        chosen: list[tuple[Plan, Finished | None]] = []
        for evidence, some in zip(evidences, fitted, strict=True):
            asked = [place for place, (_, request) in enumerate(some) if request]
            answers = [next(made) for _ in asked]
            scores = evidence.scores or [0.0] * len(some)
            pairs = [(scores[place], some[place][0]) for place in asked]
            best = self._best(evidence, pairs, answers) if answers else None
            if best is not None:
                finished()
            chosen.append((together([plan for plan, _ in some]), best))
        return chosen

    def _best(self, evidence: Evidence, pairs: Sequence[tuple[float, Plan]], answers: Sequence[Finished]) -> Finished:
        texts, plans = different(answers), [plan for _, plan in pairs]
        read = self._reader.likelihoods(self._settings, plans, texts) if len(texts) > 1 else None
        prior_K = log_prior(self._settings, [score for score, _ in pairs], self._trained_at)
        return best_of(evidence.question, prior_K, answers, read)
