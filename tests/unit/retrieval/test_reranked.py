"""Reranking: the cross-encoder decides the order of what the index found, and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from ray_jobs.index_corpus import _index
from regrad.data.passages import Passage
from regrad.errors import ConfigError, ModelError, RetrievalError
from regrad.retrieval.base import RETRIEVERS, open_retriever, read_index_card
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.collection_changes import changing, create_collection, publish, with_segment, write_segment
from regrad.retrieval.config import IndexConfig, RerankConfig
from regrad.retrieval.hits import HitSource
from regrad.retrieval.reranked import CrossEncoder, rerank_index
from regrad.settings import parse_settings
from tests.tools.overlap import build_overlap_index
from tests.tools.refusals import refused

WORDS = ("red", "green", "blue", "fox", "owl", "where", "is", "the")
PASSAGES = [Passage(f"p{n}", "", f"the {WORDS[n % 3]} {WORDS[3 + n % 2]}") for n in range(12)]
QUESTION = "where is the fox"


@pytest.fixture(autouse=True)
def _overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RETRIEVERS, "overlap", "tests.tools.overlap:OverlapRetriever")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cross-encoder with random weights: an order without a meaning, but always the same."""
    folder = tmp_path_factory.mktemp("cross-encoder")
    save_cross_encoder(folder)
    return str(folder)


def save_cross_encoder(folder: Path, spread: float = 1.0) -> None:
    """One that knows `WORDS`, with weights of this standard deviation."""
    torch.manual_seed(0)
    _tokenizer().save_pretrained(folder)
    BertForSequenceClassification(_config(num_labels=1, spread=spread)).save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _config(num_labels: int, spread: float = 1.0) -> BertConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertConfig(vocab_size=16, num_labels=num_labels, initializer_range=spread, **sizes)


def reranked(folder: Path, model: str, **changes: int) -> str:
    if not (folder / "index").exists():
        build_overlap_index(PASSAGES, f"{folder}/index")
    settings = RerankConfig.model_validate({"index": f"{folder}/index", "model": model, **changes})
    rerank_index(settings, f"{folder}/reranked")
    return f"{folder}/reranked"


def scores(model: str, passages: Sequence[Passage]) -> dict[str, float]:
    encoder = CrossEncoder(RerankConfig(index="any", model=model))
    return {one.id: encoder.scores(QUESTION, [one])[0] for one in passages}


def test_passages_come_in_the_cross_encoders_order(tmp_path: Path, model: str) -> None:
    with open_retriever(reranked(tmp_path, model, batch_size=5)) as retriever:
        assert retriever.card.kind == "reranked"
        found = retriever.search_ids([QUESTION, QUESTION], 12)
        (hits,) = retriever.search([QUESTION], 2)
    expected = scores(model, PASSAGES)
    assert len({round(score, 4) for score in expected.values()}) > 3, "else any order would do"
    assert found[0] == found[1]
    assert dict(found[0]) == {name: pytest.approx(score, abs=1e-5) for name, score in expected.items()}
    assert [score for _, score in found[0]] == sorted((score for _, score in found[0]), reverse=True)
    assert [hit.passage.id for hit in hits] == [name for name, _ in found[0][:2]]


def test_only_what_the_index_finds_first_is_read(tmp_path: Path, model: str) -> None:
    with open_retriever(reranked(tmp_path, model, depth=3)) as retriever, open_retriever(f"{tmp_path}/index") as inner:
        (before,) = inner.search_ids([QUESTION], 3)
        first = {name for name, _ in before}
        (hits,) = retriever.search([QUESTION], 2)
        for hit in hits:
            place = [name for name, _ in before].index(hit.passage.id)
            assert hit.sources == (HitSource("overlap", place + 1, before[place][1]),)
        assert {name for name, _ in retriever.search_ids([QUESTION], 2)[0]} < first
        assert len(retriever.search_ids([QUESTION], 5)[0]) == 5, "k, if that is more"


def test_a_model_that_was_trained_here_scores_as_in_its_training(tmp_path: Path, model: str) -> None:
    pairs = [(QUESTION, passage) for passage in PASSAGES]
    logits = CrossEncoder(RerankConfig(index="any", model=model)).logits(pairs).tolist()
    trained = RerankConfig(index=f"{tmp_path}/index", model=model, temperature=0.5)
    build_overlap_index(PASSAGES, trained.index)
    rerank_index(trained, f"{tmp_path}/trained")
    with open_retriever(f"{tmp_path}/trained") as retriever:
        (found,) = retriever.search_ids([QUESTION], 12)
        assert retriever.temperature == 0.5
    expected = {passage.id: pytest.approx(logit, abs=1e-5) for passage, logit in zip(PASSAGES, logits, strict=True)}
    assert dict(found) == expected and min(logits) < 0, "no sigmoid is below 0"
    with open_retriever(reranked(tmp_path, model)) as retriever:
        assert retriever.temperature is None


def test_a_model_that_is_no_cross_encoder_is_refused(tmp_path: Path, model: str) -> None:
    _tokenizer().save_pretrained(tmp_path / "encoder")
    BertModel(_config(num_labels=1)).save_pretrained(tmp_path / "encoder")
    _tokenizer().save_pretrained(tmp_path / "classes")
    BertForSequenceClassification(_config(num_labels=3)).save_pretrained(tmp_path / "classes")
    for place in ("encoder", "classes"):
        with refused(RetrievalError, "no_cross_encoder", path=str(tmp_path / place)):
            reranked(tmp_path, str(tmp_path / place))
    with refused(ModelError, "not_found"):
        reranked(tmp_path, str(tmp_path / "nothing"))
    assert not (tmp_path / "reranked").exists()


def test_an_index_that_has_changed_since_is_named(tmp_path: Path, model: str) -> None:
    uri = reranked(tmp_path, model)
    build_overlap_index(PASSAGES[:5], f"{tmp_path}/index")
    with refused(RetrievalError, "other_corpus", found=5, expected=12):
        open_retriever(uri)


def test_over_a_collection_it_follows_what_changes_there(tmp_path: Path, model: str) -> None:
    build_index(PASSAGES[:8], f"{tmp_path}/bm25")
    uri = f"{tmp_path}/collection"
    create_collection(uri, [f"{tmp_path}/bm25"])
    rerank_index(RerankConfig(index=uri, model=model), f"{tmp_path}/reranked")
    with open_retriever(f"{tmp_path}/reranked") as retriever:
        assert retriever.newest() is retriever
        with changing(uri) as version:
            publish(uri, with_segment(uri, version, write_segment(uri, version, lambda: PASSAGES[8:])))
        newer = retriever.newest()
        assert [found for found, _ in retriever.search_ids(["fox"], 12)[0]] != []
        found = {name for name, _ in newer.search_ids(["fox owl"], 12)[0]}
        assert found == {passage.id for passage in PASSAGES}
        assert newer.passages(["p11"]) == [PASSAGES[11]]
        retriever.retire()
        assert len(newer.search_ids(["fox owl"], 12)[0]) == 12, "what both versions have stays open"
    with open_retriever(f"{tmp_path}/reranked") as again:
        assert again.card.passages == 12


def test_the_job_makes_one_and_settings_name_one_source(tmp_path: Path, model: str) -> None:
    build_overlap_index(PASSAGES, f"{tmp_path}/index")
    rerank = {"index": f"{tmp_path}/index", "model": model}
    config = parse_settings(IndexConfig, {"rerank": rerank, "output": f"{tmp_path}/new"}, "test")
    assert _index(config, None) == 12
    assert read_index_card(f"{tmp_path}/new").joins == ("overlap",)
    with refused(ConfigError, "invalid"):
        parse_settings(IndexConfig, {"rerank": rerank, "corpus": "c.jsonl", "output": "o"}, "test")
