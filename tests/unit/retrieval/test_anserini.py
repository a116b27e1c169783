"""A Lucene index that Anserini's own indexer made, which has neither a card nor a passage store."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from regrad.data.passages import Passage
from regrad.errors import PassageNotFound, RetrievalError
from regrad.retrieval import lucene_process
from regrad.retrieval.anserini import located
from regrad.retrieval.base import check_index, open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.collection_changes import create_collection
from regrad.retrieval.config import Bm25SearchConfig, FuseConfig, RetrieverConfig
from regrad.retrieval.fused import fuse_indexes
from regrad.retrieval.lucene_process import LuceneProcess
from regrad.retrieval.whole_check import check_whole
from regrad.storage import Storage
from tests.tools.anserini import index_with_anserini
from tests.tools.refusals import refused

RECORDS = [
    {"id": "curie", "contents": '"Marie Curie"\nShe was a physicist and a chemist.'},
    {"id": "radium", "title": "Radium", "contents": "The metal that Curie found glows."},
    {"id": "plain", "contents": "A chemist weighs metals."},
]


@pytest.fixture(scope="module")
def prebuilt(tmp_path_factory: pytest.TempPathFactory) -> str:
    return index_with_anserini(RECORDS, str(tmp_path_factory.mktemp("anserini") / "index"), "-storeRaw")


def ids(hits: Sequence[tuple[str, float]]) -> list[str]:
    return [name for name, _ in hits]


def test_it_is_searched_as_it_is_and_its_texts_are_what_lucene_keeps(prebuilt: str) -> None:
    card = check_index(prebuilt)
    assert (card.kind, card.passages, card.fields) == ("anserini", 3, ("contents",))
    with open_retriever(prebuilt) as index:
        curie, chemist = index.search(["Curie", "a chemist of metals"], 10)
        assert {hit.passage for hit in curie} == {
            Passage("curie", "Marie Curie", "She was a physicist and a chemist."),
            Passage("radium", "Radium", "The metal that Curie found glows."),
        }
        assert chemist[0].passage == Passage("plain", "", "A chemist weighs metals.")
        assert index.known(["plain", "nobody", "\ud800"]) == {"plain"}
        for unknown in ("nobody", "\ud800"):
            with refused(PassageNotFound, passage_id=unknown):
                index.passages(["plain", unknown])


def test_scores_are_those_of_an_index_of_regrads_own(prebuilt: str, tmp_path: Path) -> None:
    passages = [Passage(record["id"], "", record["contents"]) for record in RECORDS]
    build_index(passages, str(tmp_path / "own"))
    only_contents = RetrieverConfig(bm25=Bm25SearchConfig(title=0, k1=0.9, b=0.4))
    with open_retriever(prebuilt, only_contents) as index, open_retriever(str(tmp_path / "own"), only_contents) as own:
        questions = ["Curie", "chemist metals", "the and of"]
        assert index.search_ids(questions, 3) == own.search_ids(questions, 3)
        assert len(index.search_ids(questions, 3)[1]) == 3


@pytest.mark.slow
def test_contents_are_taken_where_raw_is_not_kept_and_an_index_without_texts_says_so(tmp_path: Path) -> None:
    with open_retriever(index_with_anserini(RECORDS, f"{tmp_path}/contents", "-storeContents")) as index:
        assert index.passages(["curie"]) == [Passage("curie", "Marie Curie", "She was a physicist and a chemist.")]
    with open_retriever(index_with_anserini(RECORDS, f"{tmp_path}/slim")) as index:
        assert ids(index.search_ids(["glows"], 1)[0]) == ["radium"]
        with refused(RetrievalError, "no_texts"):
            index.search(["glows"], 1)


def test_it_is_fused_with_others_and_found_in_an_object_store(
    prebuilt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAD_CACHE", str(tmp_path / "cache"))
    remote = f"memory://{uuid.uuid4().hex}/index"
    for name in os.listdir(prebuilt):
        Storage(remote).write(name, (Path(prebuilt) / name).read_bytes())
    build_index([Passage(record["id"], "", record["contents"]) for record in RECORDS], str(tmp_path / "own"))
    fuse_indexes(FuseConfig(indexes=(remote, str(tmp_path / "own"))), str(tmp_path / "fused"))
    with open_retriever(str(tmp_path / "fused")) as index:
        (hits,) = index.search(["glows"], 1)
        assert [source.name for source in hits[0].sources] == ["anserini", "bm25"]
        assert hits[0].passage.title == "Radium"


def test_what_needs_a_passage_store_or_checksums_is_refused(prebuilt: str, tmp_path: Path) -> None:
    with refused(RetrievalError, "bad_kinds", kinds=["anserini"]):
        create_collection(str(tmp_path / "all"), [prebuilt])
    with open_retriever(prebuilt) as index, refused(RetrievalError, "not_extendable"):
        index.build_like([], str(tmp_path / "more"))
    with refused(RetrievalError, "no_checksums"):
        check_whole(prebuilt)


@pytest.mark.parametrize("wrong", [{"contents": 0}, {"text": 1}, {"title": 2}])
def test_fields_that_it_does_not_have_are_refused(prebuilt: str, wrong: dict[str, float]) -> None:
    with refused(RetrievalError, "no_field", fields=["contents"]):
        open_retriever(prebuilt, RetrieverConfig.model_validate({"bm25": wrong}))


def test_what_lucene_cannot_read_is_refused(prebuilt: str, tmp_path: Path) -> None:
    shutil.copytree(prebuilt, tmp_path / "index")
    next((tmp_path / "index").glob("*.si")).unlink()
    with refused(RetrievalError, "damaged"):
        open_retriever(str(tmp_path / "index"))


def test_a_name_of_pyserinis_is_taken_from_its_cache_and_from_nowhere_else(
    prebuilt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSERINI_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with refused(RetrievalError, "not_fetched", name="msmarco-v1-passage") as info:
        open_retriever("msmarco-v1-passage")
    shutil.copytree(prebuilt, str(info.value.fields["expected"]))
    assert check_index("msmarco-v1-passage").passages == 3
    with open_retriever("msmarco-v1-passage") as index:
        assert index.card.kind == "anserini"
    (of_settings,) = FuseConfig(indexes=("msmarco-v1-passage", "other")).indexes[:1]
    assert of_settings == f"{tmp_path}/msmarco-v1-passage"
    assert check_index(of_settings).passages == 3
    with refused(RetrievalError, "not_found", uri="no-such-index"):
        open_retriever("no-such-index")
    (tmp_path / "msmarco-v1-doc").mkdir()
    assert located("msmarco-v1-doc") == "msmarco-v1-doc", "a directory of that name comes first"
    with refused(RetrievalError, "packed"):
        open_retriever("lucene-inverted.msmarco-v1-passage.tar.gz")


def test_a_mistyped_index_is_not_found_where_there_is_no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGRAD_JAVA_HOME", str(tmp_path))
    own = LuceneProcess()
    monkeypatch.setattr(lucene_process, "_of", lambda pid: own)
    with refused(RetrievalError, "not_found", uri="no-such-index"):
        check_index("no-such-index")
    own.stop()
