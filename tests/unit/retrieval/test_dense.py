from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval.base import CARD, open_retriever
from regrad.retrieval.config import DenseConfig, DenseSearchConfig, EncoderConfig, IndexConfig, RetrieverConfig
from regrad.retrieval.dense import build_dense_index, passages_encoder
from regrad.retrieval.embedding import Vectors
from regrad.retrieval.encoder import Encoder
from regrad.settings import parse_settings
from tests.tools.encoders import bag_of_words
from tests.tools.refusals import refused, refused_settings

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


@pytest.mark.slow
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
    prefixed = {**encoder.model_dump(), "question_prefix": "query: "}
    rewrite(index, "encoder.json", described(index, encoder=prefixed))
    with refused(RetrievalError, "other_encoder"):
        open_retriever(index)


def rewrite(index: str, file: str, content: bytes) -> None:
    """A file with another content, and the size of that in the card."""
    card = json.loads(Path(index, CARD).read_text())
    card["files"][file]["bytes"] = len(content)
    Path(index, CARD).write_text(json.dumps(card))
    Path(index, file).write_bytes(content)


def described(index: str, **changes: object) -> bytes:
    return json.dumps({**json.loads(Path(index, "encoder.json").read_text()), **changes}).encode()


@pytest.mark.parametrize("vectors", ["flat", "hnsw"])
def test_other_dimensions_than_the_encoders_are_refused_with_both_numbers(
    tmp_path: Path, encoder: EncoderConfig, vectors: str
) -> None:
    index = build(tmp_path / "index", encoder, vectors, CORPUS[:40])
    rewrite(index, "encoder.json", described(index, dimensions=39))
    with refused(RetrievalError, "other_dimensions", expected=39, found=40):
        open_retriever(index)


@pytest.mark.parametrize("vectors", ["flat", "hnsw"])
def test_vectors_of_other_dimensions_than_the_card_says_are_refused(
    tmp_path: Path, encoder: EncoderConfig, vectors: str
) -> None:
    index = build(tmp_path / "index", encoder, vectors, CORPUS[:40])
    other = build(tmp_path / "other", encoder, vectors, CORPUS[:20])
    name = {"flat": "vectors.f32", "hnsw": "vectors.faiss"}[vectors]
    rewrite(index, name, Path(other, name).read_bytes())
    # Half the vectors are half the dimensions to a file of plain numbers; FAISS's has both.
    with refused(RetrievalError, "other_dimensions", expected=40, found=20):
        open_retriever(index)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}"])
def test_an_encoder_card_that_is_broken_is_refused(tmp_path: Path, encoder: EncoderConfig, content: bytes) -> None:
    index = build(tmp_path / "index", encoder, passages=CORPUS[:3])
    rewrite(index, "encoder.json", content)
    with refused(RetrievalError, "damaged", file="encoder.json"):
        open_retriever(index)
    with refused(RetrievalError, "damaged", file="encoder.json"):
        passages_encoder(index)


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_vectors_that_give_no_finite_score_are_refused(tmp_path: Path, encoder: EncoderConfig, number: float) -> None:
    index = build(tmp_path / "index", encoder, passages=CORPUS[:40])
    vectors = np.memmap(tmp_path / "index/vectors.f32", dtype=np.float32, mode="r+")
    vectors[:] = number
    vectors.flush()
    with open_retriever(index) as retriever, refused(RetrievalError, "damaged", file="vectors.f32"):
        retriever.search_ids(["word1"], 3)


def test_what_faiss_cannot_read_is_refused(tmp_path: Path, encoder: EncoderConfig) -> None:
    index = build(tmp_path / "index", encoder, "hnsw", CORPUS[:40])
    rewrite(index, "vectors.faiss", b"no index of FAISS")
    with refused(RetrievalError, "damaged", file="vectors.faiss"):
        open_retriever(index)


def test_a_question_without_a_finite_vector_is_refused(
    tmp_path: Path, encoder: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build(tmp_path / "index", encoder, passages=CORPUS[:3])
    nothing = np.full((1, 40), np.nan, np.float32)
    with open_retriever(index) as retriever, refused(RetrievalError, "not_finite"):
        monkeypatch.setattr(Encoder, "encode_questions", lambda self, questions: nothing)
        retriever.search_ids(["word1"], 3)


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
    both = {"fuse": fuse, "dense": {"encoder": {"path": "e"}}}
    for wrong, problem in (
        ({}, "not_one_source"),
        ({"corpus": "c", "fuse": fuse}, "not_one_source"),
        (both, "dense_without_corpus"),
    ):
        with refused_settings(problem):
            parse_settings(IndexConfig, {"output": "o", **wrong}, "here")
