"""The lab's `many`: recall and exact match of BM25, an untrained encoder, and one trained by each objective."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from regrad.data.corpora import read_passages
from regrad.data.passages import Passage
from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.data.questions import Question
from regrad.evaluation.metrics import exact_match
from regrad.evaluation.retrieval import gold_of, scores_of
from regrad.inference.decoding import GenerationRequest, generate
from regrad.lab.config import LabConfig, LabEncoderConfig
from regrad.lab.encoder import write_encoder
from regrad.lab.files import write_hard_lab
from regrad.methods.base import Evidence, MethodSettings
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.methods.regrad import ReGradOnlineConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.retrieval.base import open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.config import DenseConfig, EncoderConfig
from regrad.retrieval.dense import build_dense_index
from regrad.retrieval.encoder import Encoder
from regrad.settings import builtin_config, load_settings
from regrad.training.callbacks import Silent, StepReport
from regrad.training.loop import train_on
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.learner import RetrieverLearner, open_dense
from regrad.training.retriever.likelihood import Asked, Likelihood, MethodLikelihood
from regrad.training.retriever.run import read_asked, write_indexes

AT = (1, 3, 10)
OBJECTIVES = {
    "marginal": "{kind: marginal}",
    "vrag": "{kind: vrag}",
    "jsa": "{kind: jsa}",
    "jsa, chain kept": "{kind: jsa, keep_chain: true}",
    "jsa, simplified": "{kind: jsa, simplified: true}",
    "distill": "{kind: distill}",
    "dro": "{kind: dro, samples: 8, shown: 3}",
}
_K = 5
_BATCH = 25


@dataclass(frozen=True)
class Sizes:
    """People whose notes are trained on, training steps, questions that are asked, seeds, and D of the encoder."""

    people: int
    steps: int
    questions: int
    seeds: int
    dimensions: int


class Remembered:
    """Likelihoods that are computed once for all objectives: generator, questions and notes are the same for all."""

    def __init__(self, inner: Likelihood) -> None:
        self._inner = inner
        self._known: dict[tuple[str, ...], float] = {}

    def of(self, asked: Sequence[Asked]) -> Tensor:
        """See `Likelihood`."""
        keys = [(question.question, *(passage.id for passage in passages)) for question, passages in asked]
        unknown = {key: pair for key, pair in zip(keys, asked, strict=True) if key not in self._known}
        if unknown:
            self._known.update(zip(unknown, self._inner.of(list(unknown.values())).tolist(), strict=True))
        return torch.tensor([self._known[key] for key in keys])


class Answers:
    """Exact match of one method with a question's best passage; an answer is decoded once for each passage."""

    def __init__(self, lm: LanguageModel, settings: MethodSettings) -> None:
        self._lm, self._method = lm, settings.open(lm)
        self._known: dict[tuple[str, str], str] = {}

    def em(self, questions: Sequence[Question], best: Sequence[Passage]) -> float:
        """Over these questions."""
        pairs = list(zip(questions, best, strict=True))
        unknown = [(q, p) for q, p in pairs if (q.question, p.id) not in self._known]
        for start in range(0, len(unknown), _BATCH):
            some = unknown[start : start + _BATCH]
            evidences = [Evidence(question, (passage,), (1.0,)) for question, passage in some]
            plans = self._method.plan(evidences, self._method.open_atoms())
            prompts = self._lm.config.prompts
            made = generate(self._lm, [GenerationRequest(p.prompt.text(prompts), p.updates, 4) for p in plans])
            self._known.update({(q.question, p.id): a.text for (q, p), a in zip(some, made, strict=True)})
        return fmean(exact_match(self._known[q.question, p.id], q.answers) for q, p in pairs)


class Reports(Silent):
    """Keeps the learner's numbers over training."""

    def __init__(self) -> None:
        self.kept: list[StepReport] = []

    def report(self, report: StepReport) -> None:
        """See `Listener`."""
        self.kept.append(report)


class Lab:
    """The files, the indexes and the generator, and what is measured with them."""

    def __init__(self, folder: Path, sizes: Sizes, meta_init: str) -> None:
        self._folder, self._sizes = folder, sizes
        write_hard_lab(LabConfig(output=str(folder), variant="many", documents=sizes.people, task_records=1))
        write_encoder(LabEncoderConfig(output=f"{folder}/encoder", dimensions=sizes.dimensions))
        config = DenseConfig(encoder=EncoderConfig(path=f"{folder}/encoder"), vectors="flat")
        for corpus, index in (("documents", "train-index"), ("corpus", "index")):
            passages = read_passages(f"{folder}/{corpus}.jsonl")
            build_dense_index(passages, f"{folder}/{index}", Encoder(config.encoder, "cpu"), config)
        build_index(read_passages(f"{folder}/corpus.jsonl"), f"{folder}/bm25")
        self._questions = read_questions(QuestionSetConfig(name="many", path=f"{folder}/questions.jsonl"))
        self._base = self.config("{kind: jsa}", 0)
        lm = load_language_model(self._base.model, "cpu")
        methods: dict[str, MethodSettings] = {"prompt": PromptOnlyConfig(name="rag")}
        if meta_init:
            methods["gradient"] = ReGradOnlineConfig(name="regrad-online", meta_init=meta_init)
        self.likelihoods = {
            name: Remembered(MethodLikelihood(lm, method, False, 16384)) for name, method in methods.items()
        }
        self._answers = {name: Answers(lm, method) for name, method in methods.items()}

    def config(self, objective: str, seed: int) -> RetrieverTrainConfig:
        """The lab's settings, with those of one run."""
        folder = self._folder
        values = [f"index={folder}/train-index", f"output={folder}/trained-train", f"objective={objective}"]
        values += [f"others=[{{index: {folder}/index, output: {folder}/trained}}]", f"seed={seed}", f"k={_K}"]
        values += [f"questions.path={folder}/document-questions.jsonl", f"optimizer.steps={self._sizes.steps}"]
        return load_settings(RetrieverTrainConfig, builtin_config("jobs/retriever-lab.yaml"), values)

    def scores(self, index: str) -> dict[str, float]:
        """Recall over all questions, and exact match over the first ones with the best note."""
        with open_retriever(f"{self._folder}/{index}") as retriever:
            found = retriever.search_ids([question.question for question in self._questions], max(AT))
            asked = self._questions[: self._sizes.questions]
            best = retriever.passages([hits[0][0] for hits in found[: len(asked)]])
        run = {question.id: hits for question, hits in zip(self._questions, found, strict=True)}
        scores = scores_of(run, gold_of(self._questions), AT)
        recalls = {f"recall@{k}": fmean(one[f"recall@{k}"] for one in scores.values()) for k in AT}
        return recalls | {f"em, {name}": answers.em(asked, best) for name, answers in self._answers.items()}

    def trained(self, objective: str, likelihood: str, seed: int) -> dict[str, Any]:
        """Train, write the held-out notes' index with the encoder, and measure it."""
        config, reports = self.config(OBJECTIVES[objective], seed), Reports()
        asked = read_asked(config)
        started = time.perf_counter()
        with open_dense(config.index, config.k, "cpu") as retriever:
            learner = RetrieverLearner(
                config, retriever, self.likelihoods[likelihood], len(asked), torch.device("cpu"), "lab"
            )
            watch = config.watch.model_copy(update={"every": max(1, config.optimizer.steps // 4)})
            state = train_on(learner, asked, config.model_copy(update={"watch": watch}), reports)
            seconds = time.perf_counter() - started
            learner.product(state).save(self._folder / "question-encoder")
        write_indexes(config, self._folder / "question-encoder")
        over = {
            name: [round(report.numbers[name], 2) for report in reports.kept]
            for name in ("acceptance", "effective_sample")
            if name in reports.kept[0].numbers
        }
        return {**self.scores("trained"), "ms a step": 1e3 * seconds / config.optimizer.steps, "over training": over}


def rows(sizes: Sizes, meta_init: str, objectives: Sequence[str]) -> list[dict[str, Any]]:
    """BM25, the untrained encoder, and each objective under each likelihood."""
    found: list[dict[str, Any]] = []

    def add(retriever: str, likelihood: str, seed: int, scores: dict[str, Any]) -> None:
        row = {"retriever": retriever, "likelihood": likelihood, "seed": seed, **scores}
        found.append({**row, "ms a step": row.get("ms a step", 0.0), "over training": row.get("over training", {})})
        print(found[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        many = Lab(Path(folder), sizes, meta_init)
        add("bm25", "", 0, many.scores("bm25"))
        add("untrained", "", 0, many.scores("index"))
        for likelihood in many.likelihoods:
            for objective in objectives:
                for seed in range(sizes.seeds):
                    add(objective, likelihood, seed, many.trained(objective, likelihood, seed))
    return found


def figures(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The gains are JSA's over BM25: of recall at 3, trained with the note in the prompt, and of exact match under the
    note's gradient, trained under it; means over the seeds."""
    by = {(row["retriever"], row["likelihood"]): row for row in found}
    bm25 = by["bm25", ""]

    def mean(objective: str, likelihood: str, score: str) -> float:
        return fmean(r[score] for r in found if (r["retriever"], r["likelihood"]) == (objective, likelihood))

    made = {
        "many_recall3_bm25": bm25["recall@3"],
        "many_recall3_jsa": mean("jsa", "prompt", "recall@3"),
        "many_recall3_gain": mean("jsa", "prompt", "recall@3") - bm25["recall@3"],
        "many_em_gain": mean("jsa", "prompt", "em, prompt") - bm25["em, prompt"],
    }
    if ("jsa", "gradient") in by:
        gain = mean("jsa", "gradient", "em, gradient") - bm25["em, gradient"]
        made |= {"many_recall3_jsa_gradient": mean("jsa", "gradient", "recall@3"), "many_em_gain_under_gradient": gain}
    return made
