"""BM25 over several fields: what a title counts, the papers' best field, and an index that lacks a field."""

from __future__ import annotations

from pathlib import Path

import pytest

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval.base import Retriever, open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.config import Bm25SearchConfig, IndexConfig, RetrieverConfig
from regrad.settings import parse_settings
from tests.tools.refusals import refused, refused_settings

ABOUT = Passage("about", "Marie Curie", "She was a physicist and a chemist.")
MENTIONS = Passage("mentions", "Radium", "Marie Curie found it. Marie Curie named it. Curie weighed it.")
OTHERS = [Passage(f"other{i}", f"Element {i}", f"Number {i} of the table, a metal.") for i in range(8)]
QUESTION = "Marie Curie"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("fields") / "index")
    build_index([ABOUT, MENTIONS, *OTHERS], uri, fields=("contents", "title", "text"))
    return uri


def scores(index: str, **settings: object) -> dict[str, float]:
    with open_retriever(index, RetrieverConfig.model_validate({"bm25": settings})) as retriever:
        return dict(retriever.search_ids([QUESTION], 10)[0])


def test_what_is_named_in_the_title_comes_before_what_only_mentions_it(index: str) -> None:
    assert next(iter(scores(index, title=0.0))) == "mentions"
    assert next(iter(scores(index))) == "about", "the default counts the title, too"


def test_the_sum_is_of_each_fields_score_times_its_weight(index: str) -> None:
    contents, title = scores(index, title=0.0), scores(index, contents=0.0, title=1.0)
    found = scores(index, contents=1.0, title=0.5)
    for passage_id in ("about", "mentions"):
        expected = contents[passage_id] + 0.5 * title.get(passage_id, 0.0)
        assert found[passage_id] == pytest.approx(expected, abs=1e-3)


def test_the_best_field_counts_whole_and_the_others_by_the_tie(index: str) -> None:
    title = scores(index, contents=0.0, title=1.0)
    text = scores(index, contents=0.0, title=0.0, text=1.0)
    found = scores(index, contents=0.0, title=1.0, text=1.0, combine="best", tie=0.5)
    assert set(found) == set(title) | set(text)
    for passage_id, score in found.items():
        least, most = sorted((title.get(passage_id, 0.0), text.get(passage_id, 0.0)))
        assert score == pytest.approx(most + 0.5 * least, abs=1e-3)


@pytest.mark.parametrize("settings", [{}, {"combine": "best", "text": 1.0}])
def test_a_batch_gives_the_hits_of_each_alone(index: str, settings: dict[str, object]) -> None:
    questions = ["Marie Curie", "a metal", "", "the", "title:x~ (", "radium"]
    with open_retriever(index, RetrieverConfig.model_validate({"bm25": settings})) as retriever:
        assert retriever.search(questions, 3) == [retriever.search([one], 3)[0] for one in questions]


def test_a_field_that_the_index_lacks_is_named(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    build_index([ABOUT, MENTIONS], uri)
    with refused(RetrievalError, "no_field", missing=["text"], fields=["contents", "title"]):
        open_retriever(uri, RetrieverConfig(bm25=Bm25SearchConfig(text=1.0)))
    opened: Retriever = open_retriever(uri)
    assert opened.card.fields == ("contents", "title")


def test_settings_that_search_nothing_are_refused() -> None:
    with refused_settings("no_weight"):
        parse_settings(Bm25SearchConfig, {"contents": 0.0, "title": 0.0}, "here")
    with refused_settings("contents_missing"):
        parse_settings(IndexConfig, {"corpus": "a", "output": "b", "fields": ["title"]}, "here")
