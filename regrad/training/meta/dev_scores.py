"""Dev scores: greedy answers, each question under its own passages' update, as a deployment would give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from regrad.data.tasks import Task
from regrad.evaluation.metrics import exact_match, f1
from regrad.inference.decoding import GenerationRequest, generate
from regrad.models.loading import LanguageModel
from regrad.training.meta.collate import collate, group_questions, prompt_passages
from regrad.training.meta.config import DevConfig, InnerConfig, ShapeConfig
from regrad.training.meta.objective import Point, adapt

_BATCH_TASKS = 8


@dataclass(frozen=True)
class Sums:
    """Exact matches, F1 summed, and questions: they add up over workers."""

    exact_match: float = 0.0
    f1: float = 0.0
    questions: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.exact_match + other.exact_match, self.f1 + other.f1, self.questions + other.questions)


def score(
    lm: LanguageModel,
    at: Point,
    tasks: Sequence[Task],
    inner: InnerConfig = InnerConfig(),
    shape: ShapeConfig = ShapeConfig(),
    config: DevConfig = DevConfig(),
) -> Sums:
    """Score all questions of the tasks; the update is scaled by `config.gamma` (paper: at inference only)."""
    total = Sums()
    for start in range(0, len(tasks), _BATCH_TASKS):
        total += _score_batch(lm, at, tasks[start : start + _BATCH_TASKS], inner, shape, config)
    return total


def _score_batch(
    lm: LanguageModel, at: Point, tasks: Sequence[Task], inner: InnerConfig, shape: ShapeConfig, config: DevConfig
) -> Sums:
    with torch.no_grad():
        scaled = Point(at.phi0, at.alpha * config.gamma)
        updates_DP, _ = adapt(lm, scaled, collate(lm, tasks, shape), inner.reduction, inner.steps)
    requests, answers = [], []
    for update, (_, asked) in zip(updates_DP.detach().cpu(), group_questions(tasks), strict=True):
        for task, question in asked:
            prompt = lm.config.prompts.prompt(question.question, prompt_passages(task, question, shape))
            requests.append(GenerationRequest(prompt, lm.subspace.updates(update), config.max_new_tokens))
            answers.append([question.answer])
    found = [generation.text for generation in generate(lm, requests)]
    pairs = list(zip(found, answers, strict=True))
    return Sums(sum(exact_match(p, a) for p, a in pairs), sum(f1(p, a, config.rules) for p, a in pairs), len(pairs))
