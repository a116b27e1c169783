"""Words of another language than English: their endings and stop words are taken off, of passages and of questions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from regrad.data.passages import Passage
from regrad.errors import ConfigError, RetrievalError
from regrad.retrieval.base import CARD, check_index, open_retriever
from regrad.retrieval.bm25 import LuceneRetriever, build_index, build_shard, build_sharded_index
from regrad.retrieval.collection_changes import changing, create_collection, publish, with_segment, write_segment
from regrad.retrieval.config import Bm25SearchConfig, IndexConfig, IndexField, Language, RetrieverConfig
from regrad.settings import load_settings, parse_settings
from tests.tools.refusals import refused, refused_settings

PASSAGES = [
    Passage("houses", "Bremen", "Die Häuser der Altstadt und der Fluss."),
    Passage("dog", "Hunde", "Der Hund und die Katze."),
    Passage("tree", "Bäume", "Ein Baum an der Straße."),
]
BEST = RetrieverConfig(bm25=Bm25SearchConfig(combine="best"))


def sharded(uri: str, language: Language) -> None:
    fields: tuple[IndexField, ...] = ("contents", "title")
    build_sharded_index(
        PASSAGES,
        uri,
        2,
        lambda shards: [build_shard(PASSAGES, one, f"{uri}.parts", 1, fields, language) for one in shards],
        fields,
        language,
    )


def collected(uri: str) -> None:
    """Two passages of the first index, the third one added."""
    build_index(PASSAGES[:2], f"{uri}-first", language="de")
    create_collection(uri, [f"{uri}-first"])
    with changing(uri) as version:
        publish(uri, with_segment(uri, version, write_segment(uri, version, lambda: PASSAGES[2:])))


@pytest.mark.parametrize("kind", ["one", "shards", "collection"])
@pytest.mark.parametrize("settings", [RetrieverConfig(), BEST], ids=["sum", "best-field"])
def test_german_is_split_as_german_however_it_is_searched(tmp_path: Path, kind: str, settings: RetrieverConfig) -> None:
    uri = str(tmp_path / "index")
    if kind == "one":
        build_index(PASSAGES, uri, language="de")
    elif kind == "shards":
        sharded(uri, "de")
    else:
        collected(uri)
    with open_retriever(uri, settings) as index:
        found = index.search_ids(["Haus", "die und der", "welcher Baum"], 3)
        assert [[name for name, _ in hits] for hits in found] == [["houses"], [], ["tree"]]
        assert [index.search_ids([one], 3)[0] for one in ("Haus", "die und der", "welcher Baum")] == found


def test_english_is_the_language_of_a_card_that_names_none(tmp_path: Path) -> None:
    build_index([Passage("a", "", "many houses and the river")], str(tmp_path / "i"))
    card = json.loads((tmp_path / "i" / CARD).read_text())
    assert card.pop("language") == "en"
    (tmp_path / "i" / CARD).write_text(json.dumps(card))
    assert check_index(str(tmp_path / "i")).language == ""
    with open_retriever(str(tmp_path / "i")) as index:
        assert isinstance(index, LuceneRetriever)
        assert index.language == "en"
        assert [len(hits) for hits in index.search_ids(["house", "and the"], 1)] == [1, 0]


def test_indexes_of_two_languages_are_not_searched_as_one(tmp_path: Path) -> None:
    for language in ("de", "en"):
        build_index(PASSAGES, str(tmp_path / language), language=language)
    german, english = (open_retriever(str(tmp_path / language)) for language in ("de", "en"))
    with german, english, refused(RetrievalError, "other_language", found=["de", "en"]):
        german.joined([english])


def test_shards_of_another_language_are_others(tmp_path: Path) -> None:
    names = []
    for language in ("de", "en"):
        sharded(str(tmp_path / language), language)
        names.append({path.name for path in (tmp_path / f"{language}.parts").iterdir()})
    assert not names[0] & names[1]


@pytest.mark.skipif("REGRAD_JAVA_HOME" in os.environ, reason="another Java may know Thai")
def test_a_language_that_java_cannot_split_is_refused(tmp_path: Path) -> None:
    with refused(RetrievalError, "no_analyser", language="th"):
        build_index(PASSAGES, str(tmp_path / "i"), language="th")
    assert not (tmp_path / "i").exists()


def test_a_language_is_one_of_anserinis_and_of_a_lexical_index(tmp_path: Path) -> None:
    with refused(ConfigError, "invalid") as info:
        load_settings(IndexConfig, None, ["corpus=c", "output=o", "language=dee"])
    assert "did you mean 'de'" in str(info.value)
    (tmp_path / "c.yaml").write_text("corpus: c\noutput: o\nlanguage: no\n")
    assert load_settings(IndexConfig, tmp_path / "c.yaml").language == "no"
    with refused_settings("language_of_no_text"):
        parse_settings(IndexConfig, {"output": "o", "fuse": {"indexes": ["a", "b"]}, "language": "de"}, "here")
