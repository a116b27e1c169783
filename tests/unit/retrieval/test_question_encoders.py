"""Questions with an encoder of their own, DPR's above all: its vectors are those of transformers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, DPRConfig, DPRContextEncoder, DPRQuestionEncoder, DPRReader

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval.base import open_retriever
from regrad.retrieval.config import DenseConfig, DenseSearchConfig, EncoderConfig, RetrieverConfig
from regrad.retrieval.dense import DenseRetriever, build_dense_index, passages_encoder, with_question_encoder
from regrad.retrieval.embedding import Vectors
from regrad.retrieval.encoder import Encoder
from tests.tools.encoders import bag_of_words, dpr_pair
from tests.tools.refusals import refused

PASSAGES = [Passage(f"p{number}", "", f"{name} was born in a town") for number, name in enumerate("ABCD")]
QUESTIONS = ["Where was A born?", "Who?"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return dpr_pair(tmp_path_factory.mktemp("dpr"))


def config(pair: tuple[str, str]) -> EncoderConfig:
    return EncoderConfig(path=pair[0], question_path=pair[1], normalise=False)


def with_transformers(path: str, kind: Any, texts: list[str]) -> Vectors:
    """The vectors that DPR's own class gives."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), kind.from_pretrained(path).eval()
    rows = []
    for text in texts:
        read = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            rows.append(model(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).pooler_output[0])
    return np.asarray(torch.stack(rows).numpy())


def test_dprs_vectors_are_those_of_its_own_classes(pair: tuple[str, str]) -> None:
    encoder = Encoder(config(pair), "cpu")
    texts = [passage.text for passage in PASSAGES]
    passages, questions = encoder.encode_passages(PASSAGES), encoder.encode_questions(QUESTIONS)
    np.testing.assert_allclose(passages, with_transformers(pair[0], DPRContextEncoder, texts), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(questions, with_transformers(pair[1], DPRQuestionEncoder, QUESTIONS), atol=1e-4)
    assert np.abs(passages[0] - passages[1]).max() > 1e-2, "else anything would be close"


def test_the_questions_encoder_is_part_of_the_digest_and_its_place_not(pair: tuple[str, str], tmp_path: Path) -> None:
    digest = Encoder(config(pair), "cpu").digest()
    assert Encoder(config(pair), "cpu").digest() == digest
    for other in ((pair[0], pair[0]), (pair[1], pair[1]), (pair[1], pair[0])):
        assert Encoder(config(other), "cpu").digest() != digest
    (tmp_path / "moved").symlink_to(pair[1])
    assert Encoder(config((pair[0], str(tmp_path / "moved"))), "cpu").digest() == digest


def test_an_index_is_asked_by_the_questions_encoder_wherever_it_is(pair: tuple[str, str], tmp_path: Path) -> None:
    index, encoder = str(tmp_path / "index"), Encoder(config(pair), "cpu")
    build_dense_index(PASSAGES, index, encoder, DenseConfig(encoder=config(pair)))
    expected = encoder.encode_questions(QUESTIONS) @ encoder.encode_passages(PASSAGES).T
    with open_retriever(index) as retriever:
        scores = [dict(hits) for hits in retriever.search_ids(QUESTIONS, 4)]
    for found, row in zip(scores, expected, strict=True):
        assert found == {f"p{number}": pytest.approx(score, rel=1e-3) for number, score in enumerate(row)}
    (tmp_path / "moved").symlink_to(pair[1])
    moved = DenseSearchConfig(question_encoder=str(tmp_path / "moved"))
    with open_retriever(index, RetrieverConfig(dense=moved)) as retriever:
        assert [dict(hits) for hits in retriever.search_ids(QUESTIONS, 4)] == scores
    with refused(RetrievalError, "other_encoder"):
        open_retriever(index, RetrieverConfig(dense=DenseSearchConfig(question_encoder=pair[0])))


def test_a_trained_question_encoder_takes_the_place_of_the_pairs(pair: tuple[str, str], tmp_path: Path) -> None:
    plain, trained = str(tmp_path / "plain"), str(tmp_path / "trained")
    encoder = Encoder(config(pair), "cpu")
    build_dense_index(PASSAGES, plain, encoder, DenseConfig(encoder=config(pair)))
    before, untouched = encoder.encode_questions(QUESTIONS), encoder.encode_passages(PASSAGES)
    with torch.no_grad():  # what a training would do
        next(encoder.module.parameters()).mul_(1.5)
    after = encoder.encode_questions(QUESTIONS)
    assert np.abs(after - before).max() > 1e-2
    assert np.array_equal(encoder.encode_passages(PASSAGES), untouched)
    np.testing.assert_allclose(encoder.question_vectors(QUESTIONS).detach().numpy(), after, atol=1e-4)
    encoder.save(tmp_path / "saved")
    with_question_encoder(plain, tmp_path / "saved", passages_encoder(plain), trained, {"steps": 1})
    with open_retriever(trained) as retriever:
        assert isinstance(retriever, DenseRetriever)
        np.testing.assert_allclose(retriever.encoder.encode_questions(QUESTIONS), after, atol=1e-4)
        assert retriever.passages_digest == passages_encoder(plain)
        retriever.build_like([Passage("new", "", "E was born")], str(tmp_path / "more"))
    assert passages_encoder(str(tmp_path / "more")) == passages_encoder(plain)


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({"settings": {"temperature": 0.05}}, 0.05),
        ({"settings": {"temperature": 1}}, 1.0),
        ({"settings": {"temperature": "warm"}}, None),
        ({"settings": {"temperature": 0}}, None),
        ({"settings": 3}, None),
        ({}, None),
    ],
)
def test_an_index_knows_the_temperature_of_its_training(
    pair: tuple[str, str], tmp_path: Path, notes: dict[str, Any], expected: float | None
) -> None:
    plain, trained = str(tmp_path / "plain"), str(tmp_path / "trained")
    encoder = Encoder(config(pair), "cpu")
    build_dense_index(PASSAGES, plain, encoder, DenseConfig(encoder=config(pair)))
    encoder.save(tmp_path / "saved")
    with_question_encoder(plain, tmp_path / "saved", passages_encoder(plain), trained, notes)
    with open_retriever(plain) as before, open_retriever(trained) as after:
        assert (before.temperature, after.temperature) == (None, expected)


def test_a_copy_for_training_shares_no_weights_of_questions(pair: tuple[str, str]) -> None:
    encoder = Encoder(config(pair), "cpu")
    before = encoder.encode_questions(QUESTIONS)
    with torch.no_grad():
        next(encoder.copy().module.parameters()).zero_()
    assert np.array_equal(encoder.encode_questions(QUESTIONS), before)


def test_encoders_that_are_no_pair_are_refused_with_both_dimensions(pair: tuple[str, str], tmp_path: Path) -> None:
    words = bag_of_words(tmp_path / "words", PASSAGES)
    dimensions = Encoder(EncoderConfig(path=words), "cpu").dimensions
    with refused(RetrievalError, "other_dimensions", expected=32, found=dimensions):
        Encoder(config((pair[0], words)), "cpu")


def test_what_of_dpr_gives_no_vectors_or_lacks_weights_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    projected, _ = dpr_pair(tmp_path / "projected", projection=16)
    reader = DPRReader(DPRConfig.from_pretrained(pair[0]))
    reader.save_pretrained(tmp_path / "reader")
    AutoTokenizer.from_pretrained(pair[0]).save_pretrained(tmp_path / "reader")
    DPRConfig.from_pretrained(pair[0], architectures=["DPRQuestionEncoder"]).save_pretrained(tmp_path / "mixed")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "mixed" / name).write_bytes(Path(pair[0], name).read_bytes())
    for path, reason in ((projected, "projection"), (tmp_path / "reader", "DPRReader"), (tmp_path / "mixed", "lacks")):
        with refused(RetrievalError, "no_encoder", path=str(path)) as info:
            Encoder(EncoderConfig(path=str(path)), "cpu")
        assert reason in str(info.value)
