from __future__ import annotations

from pathlib import Path

import pytest

from regrad.data.passages import Passage
from regrad.errors import ConfigError, RetrievalError
from regrad.retrieval.base import RETRIEVERS, check_index, open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.config import Bm25SearchConfig, FuseConfig, RetrieverConfig
from regrad.retrieval.fused import fuse_indexes, fused
from regrad.settings import parse_settings
from tests.tools.overlap import build_overlap_index
from tests.tools.refusals import refused, refused_settings

PASSAGES = [Passage("a", "", "harbour town"), Passage("b", "", "harbour"), Passage("c", "", "town of towers")]


@pytest.fixture(autouse=True)
def _overlap_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RETRIEVERS, "overlap", "tests.tools.overlap:OverlapRetriever")


def settings(**changes: object) -> FuseConfig:
    return FuseConfig.model_validate({"indexes": ["x", "y"], **changes})


def test_reciprocal_ranks_are_added() -> None:
    first, second = [("a", 9.0), ("b", 8.0)], [("b", 0.2), ("c", 0.1)]
    assert fused([first, second], (1, 1), settings()) == [
        ("b", pytest.approx(1 / 62 + 1 / 61)),
        ("a", pytest.approx(1 / 61)),
        ("c", pytest.approx(1 / 62)),
    ]
    assert fused([first, second], (3, 1), settings())[0][0] == "b"
    assert fused([first, second], (0, 1), settings(constant=1)) == [("b", 0.5), ("c", pytest.approx(1 / 3)), ("a", 0.0)]


def test_scores_are_added_on_one_scale() -> None:
    first, second = [("a", 30.0), ("b", 20.0), ("c", 10.0)], [("c", 0.9), ("b", 0.8)]
    found = dict(fused([first, second], (1, 2), settings(method="scores")))
    assert found == {"a": 1.0, "b": 0.5, "c": 2.0}
    assert dict(fused([[("a", 5.0)], []], (1, 1), settings(method="scores"))) == {"a": 1.0}


def test_a_fused_index_is_opened_as_any_other_and_closes_its_parts(tmp_path: Path) -> None:
    parts = [str(tmp_path / name) for name in ("x", "y")]
    for part in parts:
        build_overlap_index(PASSAGES, part)
    assert fuse_indexes(settings(indexes=parts), str(tmp_path / "both")) == 3
    with open_retriever(str(tmp_path / "both")) as both:
        (hits,) = both.search(["harbour town"], 2)
        assert [hit.passage for hit in hits] == PASSAGES[:2]
        assert hits[0].score == pytest.approx(2 / 61)


def test_a_hit_says_what_each_index_said_of_it(tmp_path: Path) -> None:
    parts = [str(tmp_path / name) for name in ("x", "y", "lexical", "inner", "outer")]
    for part in parts[:2]:
        build_overlap_index(PASSAGES, part)
    build_index(PASSAGES, parts[2])
    fuse_indexes(settings(indexes=[parts[0], parts[2]]), parts[3])
    fuse_indexes(settings(indexes=parts[:2] + parts[3:4]), parts[4])
    with open_retriever(parts[4]) as outer, open_retriever(parts[3]) as inner, open_retriever(parts[2]) as lexical:
        (hits,) = outer.search(["harbour of"], 3)
        before = {hit.passage.id: hit for hit in inner.search(["harbour of"], 3)[0]}
        by_bm25 = dict(lexical.search_ids(["harbour of"], 3)[0])
    assert {hit.passage.id for hit in hits} == {"a", "b", "c"}
    for hit in hits:
        said = {source.name: source for source in hit.sources}
        assert hit.score == pytest.approx(
            sum(1 / (60 + said[name].rank) for name in ("overlap-1", "overlap-2", "fused") if name in said)
        )
        here = before[hit.passage.id]
        assert said["fused"].score == here.score
        assert [(f"fused/{one.name}", one.rank, one.score) for one in here.sources] == [
            (one.name, one.rank, one.score) for one in hit.sources if "/" in one.name
        ]
        # BM25 does not look for "of", and of a passage that it did not find it says nothing.
        found = [source.score for name, source in said.items() if name == "fused/bm25"]
        assert found == [by_bm25[name] for name in [hit.passage.id] if name in by_bm25]
    assert sorted(by_bm25) == ["a", "b"]


def test_indexes_of_different_corpora_are_not_joined_nor_opened(tmp_path: Path) -> None:
    parts = [str(tmp_path / name) for name in ("x", "y")]
    for part, passages in zip(parts, (PASSAGES, PASSAGES[:2]), strict=True):
        build_overlap_index(passages, part)
    with refused(RetrievalError, "other_corpus", found=[3, 2]):
        fuse_indexes(settings(indexes=parts), str(tmp_path / "both"))
    assert not (tmp_path / "both").exists()
    build_overlap_index(PASSAGES, parts[1])
    fuse_indexes(settings(indexes=parts), str(tmp_path / "both"))
    for part in parts:
        build_overlap_index(PASSAGES[:2], part)
    with refused(RetrievalError, "other_corpus"):
        open_retriever(str(tmp_path / "both"))


def test_each_index_of_a_fused_one_is_searched_with_the_settings_of_its_kind(tmp_path: Path) -> None:
    parts = [str(tmp_path / name) for name in ("overlap", "lexical", "both")]
    build_overlap_index(PASSAGES, parts[0])
    build_index(PASSAGES, parts[1])
    fuse_indexes(settings(indexes=parts[:2], weights=(0, 1)), parts[2])
    chosen = RetrieverConfig(bm25=Bm25SearchConfig(b=0.0, title=0.0))
    with open_retriever(parts[1], chosen) as lexical, open_retriever(parts[2], chosen) as both:
        expected = [name for name, _ in lexical.search_ids(["harbour town"], 3)[0]]
        assert [name for name, score in both.search_ids(["harbour town"], 3)[0] if score > 0] == expected
    outer = str(tmp_path / "outer")
    fuse_indexes(settings(indexes=[parts[0], parts[2]]), outer)
    assert check_index(outer, chosen).joins == ("overlap", "bm25")


def test_settings_of_a_kind_that_is_not_searched_are_refused_and_named(tmp_path: Path) -> None:
    parts = [str(tmp_path / name) for name in ("x", "y", "both")]
    for part in parts[:2]:
        build_overlap_index(PASSAGES, part)
    fuse_indexes(settings(indexes=parts[:2]), parts[2])
    lexical = RetrieverConfig(bm25=Bm25SearchConfig(k1=0.9))
    for index, expected in ((parts[0], ["overlap"]), (parts[2], ["fused", "overlap"])):
        with refused(RetrievalError, "other_kind", found=["bm25"], expected=expected):
            check_index(index, lexical)
        # What was written down and read again is the same: a section of defaults is not a setting.
        open_retriever(index, RetrieverConfig.model_validate(RetrieverConfig().model_dump())).close()


def test_a_setting_outside_the_section_of_its_kind_is_named_with_its_place() -> None:
    for key, place in (("k1", "bm25.k1"), ("probes", "dense.probes")):
        with pytest.raises(ConfigError) as info:
            parse_settings(RetrieverConfig, {key: 1}, "here")
        assert info.value.fields["problems"] == [{"key": key, "problem": "extra_forbidden", "near": place}]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"indexes": ["x"]}, "too_short"),
        ({"weights": [1]}, "not_one_weight_each"),
        ({"weights": [0, 0]}, "no_weight"),
        ({"weights": [1, -1]}, "no_weight"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], problem: str) -> None:
    with refused_settings(problem):
        parse_settings(FuseConfig, {"indexes": ["x", "y"], **wrong}, "here")
