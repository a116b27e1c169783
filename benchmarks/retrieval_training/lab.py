"""The lab's `many`: recall and exact match of BM25, an untrained encoder, and one trained by each objective."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrad.data.corpora import read_passages
from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.evaluation.metrics import exact_match
from regrad.lab.config import LabConfig, LabEncoderConfig
from regrad.lab.encoder import write_encoder
from regrad.lab.files import write_hard_lab
from regrad.methods.base import MethodSettings
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.methods.regrad import ReGradOnlineConfig
from regrad.models.loading import load_language_model
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.config import DenseConfig, EncoderConfig
from regrad.retrieval.dense import build_dense_index
from regrad.retrieval.encoder import Encoder
from regrad.settings import builtin_config, load_settings
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.likelihood import MethodLikelihood
from retrieval_training.trial import OBJECTIVES, Answers, Remembered, TestSet, Trial, mean_of


@dataclass(frozen=True)
class Sizes:
    """People whose notes are trained on, k, steps, the learning rate, questions that are answered, seeds, and D of the
    encoder."""

    people: int
    k: int
    steps: int
    lr: float
    questions: int
    seeds: int
    dimensions: int


def rows(sizes: Sizes, meta_init: str, trained: Sequence[str], objectives: Sequence[str]) -> list[dict[str, Any]]:
    """BM25, the untrained encoder, and each objective under each likelihood of `trained`: `prompt`, `gradient`."""
    with tempfile.TemporaryDirectory() as folder:
        return list(_trial(Path(folder), sizes, meta_init, trained).rows(objectives, sizes.seeds))


def _trial(folder: Path, sizes: Sizes, meta_init: str, trained: Sequence[str]) -> Trial:
    write_hard_lab(LabConfig(output=str(folder), variant="many", documents=sizes.people, task_records=1))
    write_encoder(LabEncoderConfig(output=f"{folder}/encoder", dimensions=sizes.dimensions))
    config = DenseConfig(encoder=EncoderConfig(path=f"{folder}/encoder"), vectors="flat")
    for corpus, index in (("documents", "train-index"), ("corpus", "index")):
        passages = read_passages(f"{folder}/{corpus}.jsonl")
        build_dense_index(passages, f"{folder}/{index}", Encoder(config.encoder, "cpu"), config)
    build_index(read_passages(f"{folder}/corpus.jsonl"), f"{folder}/bm25")

    def configured(name: str, seed: int) -> RetrieverTrainConfig:
        """The lab's settings, with those of one run."""
        values = [f"index={folder}/train-index", f"output={folder}/trained-train", f"objective={OBJECTIVES[name]}"]
        values += [f"others=[{{index: {folder}/index, output: {folder}/trained}}]", f"seed={seed}", f"k={sizes.k}"]
        values += [f"questions.path={folder}/document-questions.jsonl", f"optimizer.steps={sizes.steps}"]
        values += [f"optimizer.lr={sizes.lr}"]
        return load_settings(RetrieverTrainConfig, builtin_config("jobs/retriever-lab.yaml"), values)

    lm = load_language_model(configured("jsa", 0).model, "cpu")
    methods: dict[str, MethodSettings] = {"prompt": PromptOnlyConfig(name="rag")}
    if meta_init:
        methods["gradient"] = ReGradOnlineConfig(name="regrad-online", meta_init=meta_init)
    likelihoods = {
        name: Remembered(MethodLikelihood(lm, method, False, 16384))
        for name, method in methods.items()
        if name in trained
    }
    answers = {name: Answers(lm, method, exact_match, 4) for name, method in methods.items()}
    questions = read_questions(QuestionSetConfig(name="many", path=f"{folder}/questions.jsonl"))
    indexes = {"bm25": f"{folder}/bm25", "untrained": f"{folder}/index"}
    asked = TestSet("many", questions, indexes, f"{folder}/trained", sizes.questions)
    return Trial(folder, configured, likelihoods, answers, "em", [asked])


def figures(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The gains are JSA's over BM25: of recall at 3, trained with the note in the prompt, and of exact match under the
    note's gradient, trained under it; means over the seeds."""

    def mean(retriever: str, likelihood: str, score: str) -> float:
        return mean_of(found, "many", retriever, likelihood, score)

    made = {"many_recall3_bm25": mean("bm25", "", "recall@3")}
    trained = {row["likelihood"] for row in found}
    if "prompt" in trained:
        made["many_recall3_jsa"] = mean("jsa", "prompt", "recall@3")
        made["many_recall3_gain"] = made["many_recall3_jsa"] - made["many_recall3_bm25"]
        made["many_em_gain"] = mean("jsa", "prompt", "em, prompt") - mean("bm25", "", "em, prompt")
    if "gradient" in trained:
        made["many_recall3_jsa_gradient"] = mean("jsa", "gradient", "recall@3")
        gain = mean("jsa", "gradient", "em, gradient") - mean("bm25", "", "em, gradient")
        made["many_em_gain_under_gradient"] = gain
    return made
