from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval.base import open_retriever
from regrad.retrieval.config import DenseConfig, DenseSearchConfig, EncoderConfig, IndexConfig, RetrieverConfig
from regrad.retrieval.dense import build_dense_index
from regrad.retrieval.encoder import Encoder, Vectors
from tests.tools.encoders import bag_of_words
from tests.tools.refusals import refused

WORDS = [f"word{number}" for number in range(40)]
CORPUS = [
    Passage(f"p{number}", "", " ".join(WORDS[(number * step) % 40] for step in range(1, 8))) for number in range(1200)
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    return EncoderConfig(path=bag_of_words(tmp_path_factory.mktemp("models") / "words", CORPUS))


def build(folder: Path, encoder: EncoderConfig, vectors: str = "auto", passages: list[Passage] = CORPUS) -> str:
    config = DenseConfig.model_validate({"encoder": encoder, "vectors": vectors})
    build_dense_index(passages, str(folder), Encoder(encoder, "cpu"), config)
    return str(folder)


@pytest.mark.parametrize("vectors", ["hnsw", "ivf-pq"])
def test_an_approximate_index_finds_what_the_exact_one_finds(
    tmp_path: Path, encoder: EncoderConfig, vectors: str
) -> None:
    exact = open_retriever(build(tmp_path / "flat", encoder))
    near = open_retriever(build(tmp_path / "near", encoder, vectors))
    asked = [f"{WORDS[a]} {WORDS[b]} {WORDS[c]}" for a, b, c in np.random.default_rng(0).integers(0, 40, (50, 3))]
    best = [hits[0][1] for hits in exact.search_ids(asked, 1)]
    vector_of = {p.id: v for p, v in zip(CORPUS, Encoder(encoder, "cpu").encode_passages(CORPUS), strict=True)}
    questions = Encoder(encoder, "cpu").encode_questions(asked)
    reached = [
        max(float(vector_of[name] @ question) for name, _ in hits)
        for question, hits in zip(questions, near.search_ids(asked, 20), strict=True)
    ]
    close = sum(found >= 0.95 * wanted for found, wanted in zip(reached, best, strict=True))
    assert close >= 45, f"{vectors}: {close} of 50 questions have one of their nearest among 20"
    assert not (tmp_path / "near" / "vectors.f32").exists()


def test_equal_passages_are_found_in_the_corpus_order(tmp_path: Path, encoder: EncoderConfig) -> None:
    passages = [Passage(f"{number}", "", "word1 word2") for number in (3, 1, 2)]
    index = open_retriever(build(tmp_path / "index", encoder, passages=passages))
    assert [name for name, _ in index.search_ids(["word1"], 2)[0]] == ["3", "1"]


def test_an_index_of_another_encoder_or_of_other_settings_is_refused(tmp_path: Path, encoder: EncoderConfig) -> None:
    index = build(tmp_path / "index", encoder, passages=CORPUS[:3])
    other = bag_of_words(tmp_path / "other", CORPUS[:1])
    with refused(RetrievalError, "other_encoder"):
        open_retriever(index, RetrieverConfig(dense=DenseSearchConfig(encoder=other)))
    described = json.loads((tmp_path / "index/encoder.json").read_text())
    described["encoder"]["question_prefix"] = "query: "
    (tmp_path / "index/encoder.json").write_text(json.dumps(described, indent=1) + "\n")
    with pytest.raises(RetrievalError):
        open_retriever(index)


def test_a_vector_that_is_not_finite_is_refused_and_nothing_is_left(
    tmp_path: Path, encoder: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(self: Encoder, passages: list[Passage]) -> Vectors:
        vectors = np.zeros((len(passages), 2), np.float32)
        vectors[1, 0] = np.inf
        return vectors

    monkeypatch.setattr(Encoder, "encode_passages", bad)
    with refused(RetrievalError, "not_finite", passage_id="p1"):
        build(tmp_path / "index", encoder)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_encoder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with refused(RetrievalError, "no_encoder"):
        Encoder(EncoderConfig(path=str(tmp_path / "empty")), "cpu")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with refused(RetrievalError, "no_encoders"):
        Encoder(EncoderConfig(path=str(tmp_path / "empty")), "cpu")


def test_auto_goes_by_the_number_of_passages_and_says_why(
    tmp_path: Path, encoder: EncoderConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("regrad.retrieval.dense._EXACT_UP_TO", 100)
    with caplog.at_level(logging.INFO, logger="regrad"):
        build(tmp_path / "index", encoder)
    assert "1,200 passages: hnsw" in caplog.text
    assert (tmp_path / "index/vectors.faiss").exists()


def test_an_index_is_of_a_corpus_or_of_indexes() -> None:
    fuse = {"indexes": ["a", "b"]}
    for wrong in ({}, {"corpus": "c", "fuse": fuse}, {"fuse": fuse, "dense": {"encoder": {"path": "e"}}}):
        with pytest.raises(ValueError, match=r"corpus|dense"):
            IndexConfig.model_validate({"output": "o", **wrong})
