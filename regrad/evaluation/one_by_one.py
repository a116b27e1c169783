"""The answers of a method that reads passages one by one, of many questions at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from regrad.inference.rows import DecodingRequest, Finished
from regrad.methods.base import AtomProvider, Evidence, Method, Plan
from regrad.methods.one_by_one import AnswerChooser, apart, together
from regrad.models.loading import LanguageModel
from regrad.retrieval.config import OneByOneConfig

Fit = Callable[[Plan], tuple[Plan, DecodingRequest | None]]
"""A plan that fits the context, and what the model is asked: nothing if it does not know all of its tokens."""


class OneByOne:
    """Plans and answers of one method whose passages are read apart."""

    def __init__(self, lm: LanguageModel, settings: OneByOneConfig, method: Method, atoms: AtomProvider) -> None:
        self._settings, self._method, self._atoms = settings, method, atoms
        self._chooser = AnswerChooser(lm)

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
        chosen: list[tuple[Plan, Finished | None]] = []
        for evidence, some in zip(evidences, fitted, strict=True):
            asked = [place for place, (_, request) in enumerate(some) if request]
            answers = [next(made) for _ in asked]
            scores = evidence.scores or [0.0] * len(some)
            own = [some[place][0] for place in asked], [scores[place] for place in asked]
            best = self._chooser.best(self._settings, own[1], own[0], answers) if answers else None
            chosen.append((together([plan for plan, _ in some]), best))
        return chosen
