"""Trains retrievers on a set of questions, and measures each: recall, and a score of answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.evaluation.retrieval import gold_of, scores_of
from regrad.inference.decoding import GenerationRequest, generate
from regrad.methods.base import Evidence, MethodSettings
from regrad.models.loading import LanguageModel
from regrad.retrieval.base import open_retriever
from regrad.retrieval.config import EncoderConfig
from regrad.training.callbacks import Silent, StepReport
from regrad.training.loop import train_on
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.learner import RetrieverLearner, open_trained_on
from regrad.training.retriever.likelihood import Asked, Likelihood
from regrad.training.retriever.run import read_asked, write_trained

AT = (1, 3, 10)
OBJECTIVES = {
    "marginal": "{kind: marginal}",
    "vrag": "{kind: vrag}",
    "jsa": "{kind: jsa}",
    "jsa, chain kept": "{kind: jsa, keep_chain: true}",
    "jsa, simplified": "{kind: jsa, simplified: true}",
    "distill": "{kind: distill}",
    "dro": "{kind: dro, samples: 8, shown: 3}",
    "dro, no baseline": "{kind: dro, samples: 8, shown: 3, baseline: false}",
    "dro, lists of one": "{kind: dro, samples: 8, shown: 1}",
}
SELECTORS = {
    "marginal, selector": "{kind: marginal}",
    "dro, selector": "{kind: dro, samples: 8, shown: 1}",
}
"""Objectives of a cross-encoder that orders what BM25 finds."""
_BATCH = 25


Score = Callable[[str, Sequence[str]], float]
"""How good an answer is, by those that are right."""


class Remembered:
    """Likelihoods that are computed once for all objectives: generator, questions and passages are the same for all.

    With a `file` they are kept there, too, for further runs with the same generator and passages.
    """

    def __init__(self, inner: Likelihood, file: str = "") -> None:
        self._inner, self._file = inner, Path(file) if file else None
        self.asked, self.computed = 0, 0
        """Pairs or lists that were asked for, and those that had to be computed."""
        self.spent, self.computing = 0.0, 0.0
        """Seconds in here, and those of the computed ones."""
        self._known: dict[tuple[str, ...], float] = {}
        if self._file is not None and self._file.is_file():
            self._known = {tuple(key): value for key, value in map(json.loads, self._file.read_text().splitlines())}

    def of(self, asked: Sequence[Asked]) -> Tensor:
        """See `Likelihood`."""
        began = time.perf_counter()
        keys = [(question.question, *(passage.id for passage in passages)) for question, passages in asked]
        unknown = {key: pair for key, pair in zip(keys, asked, strict=True) if key not in self._known}
        if unknown:
            computing = time.perf_counter()
            found = dict(zip(unknown, self._inner.of(list(unknown.values())).tolist(), strict=True))
            self.computing += time.perf_counter() - computing
            self.computed += len(found)
            self._known |= found
            if self._file is not None:
                with self._file.open("a") as kept:
                    kept.writelines(f"{json.dumps(pair)}\n" for pair in found.items())
        self.asked += len(keys)
        self.spent += time.perf_counter() - began
        return torch.tensor([self._known[key] for key in keys])


class Answers:
    """The score of one method's answers with a question's best passage; one is decoded once for each passage."""

    def __init__(self, lm: LanguageModel, settings: MethodSettings, score: Score, most_tokens: int) -> None:
        self._lm, self._method = lm, settings.open(lm)
        self._score, self._most_tokens = score, most_tokens
        self._known: dict[tuple[str, str], str] = {}

    def mean(self, questions: Sequence[Question], best: Sequence[Passage]) -> float:
        """Over these questions."""
        pairs = list(zip(questions, best, strict=True))
        unknown = [(q, p) for q, p in pairs if (q.question, p.id) not in self._known]
        for start in range(0, len(unknown), _BATCH):
            some = unknown[start : start + _BATCH]
            evidences = [Evidence(question, (passage,), (1.0,)) for question, passage in some]
            plans = self._method.plan(evidences, self._method.open_atoms())
            prompts = self._lm.config.prompts
            requests = [GenerationRequest(p.prompt.text(prompts), p.updates, self._most_tokens) for p in plans]
            made = generate(self._lm, requests)
            self._known.update({(q.question, p.id): a.text for (q, p), a in zip(some, made, strict=True)})
        return fmean(self._score(self._known[q.question, p.id], q.answers) for q, p in pairs)


class Reports(Silent):
    """Keeps the learner's numbers over training."""

    def __init__(self) -> None:
        self.kept: list[StepReport] = []

    def report(self, report: StepReport) -> None:
        """See `Listener`."""
        self.kept.append(report)


@dataclass(frozen=True)
class TestSet:
    """Questions of one corpus: `indexes` are its places by retriever, `trained` is where trained encoders' indexes go.

    The first `answered` questions are answered, too.
    """

    name: str
    questions: Sequence[Question]
    indexes: Mapping[str, str]
    trained: str
    answered: int


class Trial:
    """Trains by one likelihood and objective after another, and measures on the sets that were not trained on.

    `configured` gives the settings of a run by its objective's name and seed; `scored` names the score of `answers`,
    which are told apart by the likelihoods' names.
    """

    def __init__(
        self,
        folder: Path,
        configured: Callable[[str, int], RetrieverTrainConfig],
        likelihoods: Mapping[str, Remembered],
        answers: Mapping[str, Answers],
        scored: str,
        sets: Sequence[TestSet],
    ) -> None:
        self._folder, self._configured, self._sets = folder, configured, sets
        self._likelihoods, self._answers, self._scored = likelihoods, answers, scored

    def scores(self, one: TestSet, index: str) -> dict[str, float]:
        """Recall over all questions of the set, and the answers' score over the first with the best passage."""
        with open_retriever(index) as retriever:
            found = retriever.search_ids([question.question for question in one.questions], max(AT))
            asked = one.questions[: one.answered]
            best = retriever.passages([hits[0][0] for hits in found[: len(asked)]])
        run = {question.id: hits for question, hits in zip(one.questions, found, strict=True)}
        scores = scores_of(run, gold_of(one.questions), AT)
        recalls = {f"recall@{k}": fmean(one[f"recall@{k}"] for one in scores.values()) for k in AT}
        return recalls | {f"{self._scored}, {name}": a.mean(asked, best) for name, a in self._answers.items()}

    def train(self, objective: str, likelihood: str, seed: int) -> dict[str, Any]:
        """Train, and write each set's index with the encoder; gives what the training cost and said.

        Costs are as if no other run had computed any of its likelihoods.
        """
        config, reports = self._configured(objective, seed), Reports()
        asked = read_asked(config)
        remembered = self._likelihoods[likelihood]
        asked_before, spent_before = remembered.asked, remembered.spent
        with open_trained_on(config, "cpu") as retriever:
            learner = RetrieverLearner(config, retriever, remembered, len(asked), torch.device("cpu"), "benchmark")
            watch = config.watch.model_copy(update={"every": max(1, config.optimizer.steps // 4)})
            state = train_on(learner, asked, config.model_copy(update={"watch": watch}), reports)
            learner.product(state).save(self._folder / "trained")
        write_trained(config, self._folder / "trained", _no_index_anew)
        over = {
            name: [round(report.numbers[name], 2) for report in reports.kept]
            for name in ("acceptance", "effective_sample")
            if name in reports.kept[0].numbers
        }
        # What a step costs does not depend on which run came first and computed a likelihood for all: what a step asks
        # for, the mean cost of one over all that were computed so far, and the rest of the step.
        steps = config.optimizer.steps
        own = 1e3 * (state.seconds - (remembered.spent - spent_before)) / steps
        pairs = (remembered.asked - asked_before) / steps
        each = 1e3 * remembered.computing / max(1, remembered.computed)
        costs = {"ms a step": own + pairs * each, "of it, retriever": own, "likelihoods a step": pairs}
        return {**costs, "over training": over}

    def rows(self, objectives: Sequence[str], seeds: int) -> Iterator[dict[str, Any]]:
        """Each set's indexes as they are, then with each trained encoder; printed as they come."""
        for one in self._sets:
            for name, index in one.indexes.items():
                yield self._row(one, name, "", 0, index, {})
        for likelihood in self._likelihoods:
            for objective in objectives:
                for seed in range(seeds):
                    costs = self.train(objective, likelihood, seed)
                    for one in self._sets:
                        yield self._row(one, objective, likelihood, seed, one.trained, costs)

    def _row(
        self, one: TestSet, retriever: str, likelihood: str, seed: int, index: str, costs: dict[str, Any]
    ) -> dict[str, Any]:
        row = {"set": one.name, "retriever": retriever, "likelihood": likelihood, "seed": seed}
        nothing = {"ms a step": 0.0, "of it, retriever": 0.0, "likelihoods a step": 0.0, "over training": {}}
        row |= {**self.scores(one, index), **nothing, **costs}
        print(row, flush=True)
        return row


def _no_index_anew(corpus: str, encoder: EncoderConfig, output: str) -> str:
    raise NotImplementedError("no trial trains the encoder of passages")


def mean_of(found: Sequence[dict[str, Any]], of: str, retriever: str, likelihood: str, score: str) -> float:
    """A score's mean over the seeds of one row of the table; raises `statistics.StatisticsError` if it is not there."""
    wanted = (of, retriever, likelihood)
    return fmean(row[score] for row in found if (row["set"], row["retriever"], row["likelihood"]) == wanted)
