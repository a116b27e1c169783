"""A corpus that changes: what is added is found as if it had always been there, what is deleted by nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from ray_jobs.index_corpus import run
from regrad.data.passages import Passage, encode_passages
from regrad.errors import PassageNotFound, RetrievalError, StorageError
from regrad.retrieval.base import CARD, Retriever, check_index, open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.collection import CollectionBank, read_version
from regrad.retrieval.collection_changes import (
    changing,
    create_collection,
    known_ids,
    publish,
    with_segment,
    without,
    write_segment,
)
from regrad.retrieval.config import (
    Bm25SearchConfig,
    DenseConfig,
    EncoderConfig,
    FuseConfig,
    IndexConfig,
    RetrieverConfig,
)
from regrad.retrieval.dense import build_dense_index, passages_encoder, with_question_encoder
from regrad.retrieval.encoder import Encoder
from regrad.retrieval.fused import fuse_indexes
from tests.tools.encoders import bag_of_words
from tests.tools.refusals import refused

ANIMALS = ("fox", "owl", "hare", "wolf", "bear", "lynx", "newt", "crow", "mole", "toad")
PASSAGES = [
    Passage(
        f"p{number}", f"Notes {number}", f"The {ANIMALS[number % 10]} number {number} lives near the river {number % 7}"
    )
    for number in range(60)
]
QUESTIONS = ["Where does fox number 50 live?", "owl river", "number 3", "the", "", "wolf wolf 13 river 6"]
BEST_FIELD = RetrieverConfig(bm25=Bm25SearchConfig(contents=1, title=1, combine="best"))


def index(folder: Path, passages: Iterable[Passage], kind: str = "bm25") -> str:
    uri = f"{folder}/{kind}"
    if kind == "bm25":
        build_index(passages, uri)
    else:
        config = EncoderConfig(path=bag_of_words(folder / "encoder", PASSAGES))
        build_dense_index(passages, uri, Encoder(config, "cpu"), DenseConfig(encoder=config))
    return uri


def collection(folder: Path, passages: Sequence[Passage], kinds: Sequence[str] = ("bm25",)) -> str:
    uri = f"{folder}/collection"
    create_collection(uri, [index(folder, passages, kind) for kind in kinds])
    return uri


def add(uri: str, passages: Sequence[Passage]) -> None:
    with changing(uri) as version:
        segment = write_segment(uri, version, lambda: passages)
        publish(uri, with_segment(uri, version, segment))


def delete(uri: str, ids: Sequence[str]) -> None:
    with changing(uri) as version:
        publish(uri, without(uri, version, ids))


def found(retriever: Retriever, k: int = 5) -> list[dict[str, float]]:
    """Ids and scores; pyserini rounds its scores to four digits."""
    return [
        {name: pytest.approx(score, abs=1e-4) for name, score in hits} for hits in retriever.search_ids(QUESTIONS, k)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [RetrieverConfig(), BEST_FIELD], ids=["sum", "best-field"])
def test_passages_that_were_added_one_by_one_score_as_in_one_index(tmp_path: Path, settings: RetrieverConfig) -> None:
    uri = collection(tmp_path, PASSAGES[:57])
    for passage in PASSAGES[57:]:
        add(uri, [passage])
    (tmp_path / "whole").mkdir()
    whole = index(tmp_path / "whole", PASSAGES)
    with open_retriever(uri, settings) as parts, open_retriever(whole, settings) as one:
        assert parts.card.passages == 60
        # All 60: which of equal scores come first depends on the order of documents.
        assert found(parts, 60) == found(one, 60)


@pytest.mark.slow
def test_dense_and_lexical_indexes_are_added_to_together_and_fused(tmp_path: Path) -> None:
    uri = collection(tmp_path, PASSAGES[:50], ("bm25", "dense"))
    add(uri, PASSAGES[50:])
    with open_retriever(uri) as retriever:
        found = retriever.search([QUESTIONS[0], QUESTIONS[5]], 3)
    assert [source.name for source in found[0][0].sources] == ["bm25", "dense"]
    best = [hits[0].passage for hits in found]
    assert best == [PASSAGES[50], PASSAGES[13]]


def test_an_addition_to_an_index_with_a_trained_question_encoder_is_asked_by_that_one(tmp_path: Path) -> None:
    plain, trained = index(tmp_path, PASSAGES[:50], "dense"), f"{tmp_path}/trained"
    notes = {"steps": 3, "settings": {"temperature": 0.05}}
    with_question_encoder(plain, tmp_path / "encoder", passages_encoder(plain), trained, notes)
    uri = f"{tmp_path}/collection"
    create_collection(uri, [trained])
    add(uri, PASSAGES[50:])
    (added,) = read_version(uri).segments[1].indexes
    described = json.loads((tmp_path / "collection" / added / "encoder.json").read_text())
    assert described["question_encoder"]["notes"] == notes
    with open_retriever(uri) as retriever:
        assert retriever.temperature == 0.05
        assert retriever.search([QUESTIONS[0]], 1)[0][0].passage == PASSAGES[50]


@pytest.mark.parametrize("kinds", [("bm25",), ("bm25", "dense")])
def test_a_deleted_passage_is_found_by_nothing(tmp_path: Path, kinds: Sequence[str]) -> None:
    uri = collection(tmp_path, PASSAGES[:40], kinds)
    add(uri, PASSAGES[40:])
    gone = [f"p{number}" for number in (*range(0, 40, 2), 50)]
    delete(uri, gone)
    with open_retriever(uri) as retriever:
        assert retriever.card.passages == 39
        for hits in retriever.search(QUESTIONS, 60):
            assert not {hit.passage.id for hit in hits} & set(gone)
        # Those that are left fill the places of the deleted ones.
        assert [len(hits) for hits in retriever.search(["river", "number"], 30)] == [30, 30]
        with pytest.raises(PassageNotFound):
            retriever.passages(["p1", "p50"])
        assert retriever.known(["p1", "p50", "p51", "never", "\ud800"]) == {"p1", "p51"}


def test_a_passage_that_is_added_again_replaces_the_older_one(tmp_path: Path) -> None:
    uri = collection(tmp_path, PASSAGES[:40])
    add(uri, [Passage("p3", "Notes 3", "The zebra is new here")])
    with open_retriever(uri) as retriever:
        assert retriever.card.passages == 40
        assert [hit.passage.text for hit in retriever.search(["zebra"], 5)[0]] == ["The zebra is new here"]
        assert retriever.passages(["p4", "p3"])[1].text == "The zebra is new here"
        assert "p3" not in [hit.passage.id for hit in retriever.search(["wolf river"], 40)[0]]
    delete(uri, ["p3"])
    with open_retriever(uri) as retriever:
        assert retriever.known(["p3"]) == set(), "the older text does not come back"


def test_an_open_one_goes_on_with_its_version_until_it_asks_for_the_newest(tmp_path: Path) -> None:
    uri = collection(tmp_path, PASSAGES[:40])
    with open_retriever(uri) as old:
        assert old.newest() is old
        delete(uri, ["p10"])
        assert "p10" in dict(old.search_ids(["fox number 10"], 5)[0])
        newest = old.newest()
        old.retire()
        assert "p10" not in dict(newest.search_ids(["fox number 10"], 5)[0])
        assert newest.newest() is newest


def test_who_is_killed_before_the_version_is_in_force_changes_nothing(tmp_path: Path) -> None:
    uri = collection(tmp_path, PASSAGES[:40])
    with changing(uri) as version:
        write_segment(uri, version, lambda: PASSAGES[40:])
    (tmp_path / "collection" / "versions" / "00000002.json").write_text("{")  # written in half by an old tool
    assert check_index(uri).passages == 40
    add(uri, PASSAGES[40:42])
    assert (read_version(uri).version, read_version(uri).passages) == (3, 42)
    assert known_ids(uri, read_version(uri), ["p39", "p41", "p42"]) == {"p39", "p41"}


def test_an_open_collection_says_which_version_of_its_bank_goes_with_it(tmp_path: Path) -> None:
    base, bank = index(tmp_path, PASSAGES), CollectionBank(uri="b", meta_init="m", codec="bf16", version=3)
    create_collection(f"{tmp_path}/all", [base], bank=bank)
    with open_retriever(f"{tmp_path}/all") as retriever, open_retriever(base) as plain:
        assert retriever.bank == ("b", 3)
        assert plain.bank is None


def test_what_cannot_be_a_collection_is_refused(tmp_path: Path) -> None:
    base = index(tmp_path, PASSAGES[:40])
    (tmp_path / "other").mkdir()
    dense = index(tmp_path / "other", PASSAGES[:30], "dense")
    with refused(RetrievalError, "bad_kinds", kinds=["bm25", "bm25"]):
        create_collection(f"{tmp_path}/new", [base, base])
    with refused(RetrievalError, "other_corpus", found=[40, 30]):
        create_collection(f"{tmp_path}/new", [base, dense])
    with refused(RetrievalError, "no_collection"):
        read_version(base)
    with refused(RetrievalError, "exists"):
        create_collection(base, [base])
    uri = f"{tmp_path}/new"
    create_collection(uri, [base])
    with refused(RetrievalError, "empty_collection"), changing(uri) as version:
        publish(uri, without(uri, version, [passage.id for passage in PASSAGES]))
    with refused(RetrievalError, "busy"), changing(uri), changing(uri):
        pass


def test_an_index_that_was_made_again_under_a_collection_is_refused(tmp_path: Path) -> None:
    uri = collection(tmp_path, PASSAGES[:40])
    with open_retriever(uri) as retriever:
        assert retriever.known(["p1"]) == {"p1"}
    index(tmp_path, PASSAGES[20:])
    for use in (open_retriever, check_index):
        with refused(RetrievalError, "index_changed", index=f"{tmp_path}/bm25"):
            use(uri)
    with refused(RetrievalError, "index_changed"), changing(uri):
        pass


def test_a_collection_is_not_fused_by_others_nor_written_over(tmp_path: Path) -> None:
    uri = collection(tmp_path, PASSAGES[:40])
    with refused(RetrievalError, "bad_kinds", kinds=["collection", "bm25"]):
        fuse_indexes(FuseConfig(indexes=(uri, f"{tmp_path}/bm25")), f"{tmp_path}/fused")
    (tmp_path / "corpus.jsonl").write_bytes(encode_passages(PASSAGES[:3]))
    with refused(RetrievalError, "exists", uri=uri):
        run(IndexConfig(corpus=str(tmp_path / "corpus.jsonl"), output=uri))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    with refused(StorageError, "occupied"):
        create_collection(f"{tmp_path}/thesis", [f"{tmp_path}/bm25"])


def test_a_version_that_is_not_what_was_written_is_named(tmp_path: Path) -> None:
    uri = collection(tmp_path, PASSAGES[:40])
    path = tmp_path / "collection" / "versions" / "00000001.json"
    path.write_text(path.read_text().replace('"passages": 40', '"passages": 41'))
    assert (tmp_path / "collection" / CARD).exists()
    with refused(RetrievalError, "damaged", file="versions/00000001.json"):
        open_retriever(uri)
