"""A lexical index in shards: it finds what one index of all passages finds, with the same scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval import bm25
from regrad.retrieval.base import Retriever, open_retriever
from regrad.retrieval.bm25 import Shard, build_index, build_shard, build_sharded_index
from regrad.retrieval.collection_changes import (
    changing,
    create_collection,
    publish,
    with_segment,
    without,
    write_segment,
)
from regrad.retrieval.config import Bm25SearchConfig, IndexConfig, RetrieverConfig
from regrad.settings import parse_settings
from tests.tools.refusals import refused, refused_settings

ANIMALS = ("fox", "owl", "hare", "wolf", "bear", "lynx", "newt", "crow", "mole", "toad")
# Sorted by animal, so that a word is rare in all passages and frequent in one shard: its own statistics would mislead.
PASSAGES = [
    Passage(
        f"p{number}", f"Notes {number}", f"The {ANIMALS[number // 6]} number {number} lives near river {number % 7}"
    )
    for number in range(60)
]
QUESTIONS = ["Where does owl number 9 live?", "fox river", "number 3", "wolf wolf 13 river 6", ""]
BEST_FIELD = RetrieverConfig(bm25=Bm25SearchConfig(contents=1, title=1, combine="best"))


def sharded(folder: Path, passages: Sequence[Passage], shards: int = 3) -> str:
    def build(wanted: Sequence[Shard]) -> list[str]:
        return [build_shard(passages, shard, f"{folder}/.parts", 1, ("contents", "title")) for shard in wanted]

    assert build_sharded_index(passages, f"{folder}/sharded", shards, build) == len(passages)
    return f"{folder}/sharded"


def found(retriever: Retriever, k: int = 60) -> list[dict[str, float]]:
    """Ids and scores of each question, in any order of equal scores; pyserini rounds its scores to four digits."""
    return [
        {name: pytest.approx(score, abs=1e-4) for name, score in hits} for hits in retriever.search_ids(QUESTIONS, k)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [RetrieverConfig(), BEST_FIELD], ids=["sum", "best-field"])
def test_shards_score_as_one_index_and_a_collection_of_them_as_well(tmp_path: Path, settings: RetrieverConfig) -> None:
    build_index(PASSAGES, f"{tmp_path}/one")
    uri = sharded(tmp_path, PASSAGES[:50])
    create_collection(f"{tmp_path}/all", [uri])
    with changing(f"{tmp_path}/all") as version:
        added = write_segment(f"{tmp_path}/all", version, lambda: PASSAGES[50:])
        publish(f"{tmp_path}/all", with_segment(f"{tmp_path}/all", version, added))
    with open_retriever(f"{tmp_path}/one", settings) as one, open_retriever(f"{tmp_path}/all", settings) as all_of_it:
        assert found(all_of_it) == found(one)
        assert len(found(one)[1]) > 10
    with changing(f"{tmp_path}/all") as version:
        publish(f"{tmp_path}/all", without(f"{tmp_path}/all", version, ["p9", "p55"]))
    with open_retriever(f"{tmp_path}/all", settings) as all_of_it:
        assert not {"p9", "p55"} & set(found(all_of_it)[0])
    build_index(PASSAGES[:50], f"{tmp_path}/fifty")
    with open_retriever(uri, settings) as retriever, open_retriever(f"{tmp_path}/fifty", settings) as fifty:
        assert len(list((tmp_path / "sharded").glob("lucene-*"))) == 3
        assert found(retriever) == found(fifty)
        # One index orders equal scores by id, as text; shards have them in the corpus's order.
        hits = retriever.search_ids(["river"], 60)[0]
        assert hits == sorted(hits, key=lambda hit: (-hit[1], int(hit[0][1:])))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [RetrieverConfig(), BEST_FIELD], ids=["sum", "best-field"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_batch_by_several_threads_is_answered_as_each_question_alone(
    tmp_path: Path, settings: RetrieverConfig, shards: int
) -> None:
    build_index(PASSAGES, f"{tmp_path}/one")
    uri = f"{tmp_path}/one" if shards == 1 else sharded(tmp_path, PASSAGES, shards)
    asked = [f"{animal} {number} river {number % 7}" for animal in ANIMALS for number in range(13)]
    with open_retriever(uri, settings) as retriever:
        alone = [retriever.search_ids([question], 20)[0] for question in asked]
        assert len({str(hits) for hits in alone}) > 60, "each question has an answer of its own"
        for _ in range(5):
            assert retriever.search_ids(asked, 20) == alone


def test_a_shard_is_built_once_and_only_of_the_passages_that_it_is_named_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded(tmp_path, PASSAGES[:6], shards=2)
    monkeypatch.setattr(bm25, "_index", lambda *arguments: pytest.fail("it is there already"))
    sharded(tmp_path, PASSAGES[:6], shards=2)
    monkeypatch.undo()
    changed = [*PASSAGES[:5], Passage("p5", "", "other words")]

    def build(wanted: Sequence[Shard]) -> list[str]:
        return [build_shard(PASSAGES[:6], shard, f"{tmp_path}/.others", 1, ("contents", "title")) for shard in wanted]

    with refused(RetrievalError, "corpus_changed"):
        build_sharded_index(changed, f"{tmp_path}/new", 2, build)
    assert not (tmp_path / "new").exists()
    assert len(list((tmp_path / ".others").iterdir())) == 1, "the shard that did not change"


def test_no_shard_is_empty_and_only_lexical_indexes_have_them(tmp_path: Path) -> None:
    with open_retriever(sharded(tmp_path, PASSAGES[:2], shards=5)) as retriever:
        assert len(retriever.search_ids(["number"], 5)[0]) == 2
    dense = {"encoder": {"path": "e"}}
    for wrong in ({"corpus": "c", "dense": dense}, {"fuse": {"indexes": ["a", "b"]}}):
        with refused_settings("shards_of_no_corpus"):
            parse_settings(IndexConfig, {"output": "o", "shards": 2, **wrong}, "here")
