"""SQuAD and Natural Questions: recall and F1 of BM25, a pretrained dense encoder, and one trained by each objective.

Trained is on questions of some of SQuAD's training articles; asked are SQuAD dev and Natural Questions, each with the
passages of its own set. The files are those that `python -m studies.real` writes below `sets/` of its output.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from regrad.data.corpora import read_passages
from regrad.data.jsonl import encode_jsonl, read_jsonl
from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.evaluation.metrics import f1
from regrad.methods.base import MethodSettings
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.methods.regrad import ReGradOnlineConfig
from regrad.methods.static_lora import StaticLoraConfig
from regrad.models.config import ModelConfig
from regrad.models.loading import load_language_model
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.config import DenseConfig, EncoderConfig
from regrad.retrieval.dense import build_dense_index
from regrad.retrieval.encoder import Encoder
from regrad.settings import load_settings
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.likelihood import MethodLikelihood
from retrieval_training.trial import OBJECTIVES, SELECTORS, Answers, Remembered, TestSet, Trial, mean_of

ASKED = {"squad": "squad_dev", "nq": "nq_open_oracle"}
_TRAINING = "squad_train"
_MOST_TOKENS = 16


@dataclass(frozen=True)
class Texts:
    """The study's sets, the generator (with its LoRA for passages in the prompt, and a MetaInit for their gradients, if
    these are given), the encoder, and a file that keeps the likelihoods (those under gradients beside it), if one is
    given."""

    sets: str
    model: Path
    adapter: str
    meta_init: str
    encoder: str
    likelihoods: str = ""


@dataclass(frozen=True)
class Sizes:
    """Articles and questions that are trained on, k, steps, the learning rate, seeds; questions of a set that are
    searched for, and those that are answered; k of a selector."""

    articles: int
    training: int
    k: int
    steps: int
    lr: float
    seeds: int
    searched: int
    answered: int
    selected: int


def rows(texts: Texts, sizes: Sizes, trained: Sequence[str], objectives: Sequence[str]) -> list[dict[str, Any]]:
    """BM25, the encoder as it is, and each objective under each likelihood of `trained`, for each set."""
    with tempfile.TemporaryDirectory() as folder:
        return list(_trial(Path(folder), texts, sizes, trained).rows(objectives, sizes.seeds))


def _trial(folder: Path, texts: Texts, sizes: Sizes, trained: Sequence[str]) -> Trial:
    _draw(folder, texts, sizes)
    config = DenseConfig(encoder=EncoderConfig(path=texts.encoder), vectors="flat")
    _index(f"{folder}/train.jsonl", f"{folder}/train-index", config)
    build_index(read_passages(f"{folder}/train.jsonl"), f"{folder}/train-bm25")
    _write_cross_encoder(texts.encoder, f"{folder}/cross-encoder")
    asked = [_asked(folder, texts, sizes, config, name) for name in ASKED]
    model = json.dumps(load_settings(ModelConfig, texts.model).model_dump(mode="json", exclude_none=True))

    def configured(name: str, seed: int) -> RetrieverTrainConfig:
        """The settings of one run; its steps go through the same questions, by seed in another order."""
        trained = "bm25" if name in SELECTORS else "untrained"
        others = [{"index": one.indexes[trained], "output": one.trained} for one in asked]
        values = [f"model={model}", f"output={folder}/trained-train", f"others={json.dumps(others)}"]
        values += [f"questions={{name: squad, path: {folder}/questions.jsonl}}", "method=rag", f"seed={seed}"]
        if name in SELECTORS:
            selector = {"model": f"{folder}/cross-encoder", "output": f"{folder}/selector", "max_tokens": 320}
            values += [f"index={folder}/train-bm25", f"objective={SELECTORS[name]}", "temperature=1"]
            values += [f"selector={json.dumps(selector)}", f"k={sizes.selected}"]
        else:
            values += [f"index={folder}/train-index", f"objective={OBJECTIVES[name]}", "temperature=0.05"]
            values += [f"k={sizes.k}"]
        values += [f"optimizer={{steps: {sizes.steps}, batch_size: 8, lr: {sizes.lr}}}", "cluster.workers=1"]
        return load_settings(RetrieverTrainConfig, None, values)

    lm = load_language_model(configured("jsa", 0).model, "cpu")
    likelihoods, answers = {}, {}
    for name, method in _methods(texts).items():
        kept = f"{texts.likelihoods}.{name}" if texts.likelihoods else ""
        if name in trained:
            likelihoods[name] = Remembered(MethodLikelihood(lm, method, False, 1664), kept)
        answers[name] = Answers(lm, method, f1, _MOST_TOKENS)
    return Trial(folder, configured, likelihoods, answers, "f1", asked)


def _methods(texts: Texts) -> dict[str, MethodSettings]:
    """How a passage is read, by where it is: in the prompt, or as its gradient."""
    methods: dict[str, MethodSettings] = {"prompt": PromptOnlyConfig(name="rag")}
    if texts.adapter:
        methods["prompt"] = StaticLoraConfig(name="ft-rag", adapter=texts.adapter)
    if texts.meta_init:
        methods["gradient"] = ReGradOnlineConfig(name="regrad-online", meta_init=texts.meta_init)
    return methods


def _draw(folder: Path, texts: Texts, sizes: Sizes) -> None:
    """The passages of some training articles, and some of the questions about them."""
    found = [raw for _, raw in read_jsonl(f"{texts.sets}/{_TRAINING}/questions.jsonl")]
    drawn, articles = random.Random(0), sorted({raw["group"] for raw in found})
    chosen = set(drawn.sample(articles, min(sizes.articles, len(articles))))
    found = [raw for raw in found if raw["group"] in chosen]
    passages = {passage["id"]: passage for raw in found for passage in raw["passages"]}
    asked = drawn.sample(found, min(sizes.training, len(found)))
    _write(folder / "train.jsonl", passages.values())
    _write(folder / "questions.jsonl", ({k: raw[k] for k in ("id", "question", "answers")} for raw in asked))


def _write(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.write_bytes(encode_jsonl(records))


def _index(corpus: str, place: str, config: DenseConfig) -> None:
    build_dense_index(read_passages(corpus), place, Encoder(config.encoder, "cpu"), config)


def _write_cross_encoder(encoder: str, place: str) -> None:
    """The encoder's network with a new head of one score: nothing here was trained to rank."""
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1).save_pretrained(place)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(place)


def _asked(folder: Path, texts: Texts, sizes: Sizes, config: DenseConfig, name: str) -> TestSet:
    source = f"{texts.sets}/{ASKED[name]}"
    _index(f"{source}/corpus.jsonl", f"{folder}/{name}-index", config)
    build_index(read_passages(f"{source}/corpus.jsonl"), f"{folder}/{name}-bm25")
    questions = read_questions(QuestionSetConfig(name=name, path=f"{source}/questions.jsonl", limit=sizes.searched))
    indexes = {"bm25": f"{folder}/{name}-bm25", "untrained": f"{folder}/{name}-index"}
    return TestSet(name, questions, indexes, f"{folder}/{name}-trained", sizes.answered)


def figures(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """JSA's gains over the encoder as it was, means over the seeds: recall at 1, and F1 with the best passage, read in
    the way that was trained with."""
    made = {}
    for under in dict.fromkeys(row["likelihood"] for row in found if row["likelihood"]):
        end = "" if under == "prompt" else f"_under_{under}"
        for name in ASKED:
            for figure, score in (("recall1", "recall@1"), ("f1", f"f1, {under}")):
                gain = mean_of(found, name, "jsa", under, score) - mean_of(found, name, "untrained", "", score)
                made[f"{name}_{figure}_gain{end}"] = gain
    return made
