"""Real Lucene, in this process (the JVM starts once)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from regrad.data.passages import Passage
from regrad.errors import PassageNotFound, RetrievalError
from regrad.lab.files import held_out_corpus, held_out_questions
from regrad.lab.world import World
from regrad.retrieval.bm25 import LuceneRetriever, build_index


@pytest.fixture(scope="module")
def retriever(world: World, tmp_path_factory: pytest.TempPathFactory) -> LuceneRetriever:
    folder = tmp_path_factory.mktemp("index") / "lab"
    assert build_index(held_out_corpus(world), str(folder)) == 400
    return LuceneRetriever(str(folder))


def test_the_person_asked_about_is_found_first(retriever: LuceneRetriever, world: World) -> None:
    questions = held_out_questions(world, 200)
    first = [retriever.search(item.question, 3)[0].passage.id for item in questions]
    assert sum(a == item.passage_id for a, item in zip(first, questions, strict=True)) >= 198


def test_scores_fall_and_passages_are_whole(retriever: LuceneRetriever, world: World) -> None:
    corpus = {passage.id: passage for passage in held_out_corpus(world)}
    hits = retriever.search(f"Where was {world.held_out[0].name} born?", 10)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(corpus[hit.passage.id] == hit.passage for hit in hits)


def test_many_threads_may_search_at_once(retriever: LuceneRetriever, world: World) -> None:
    questions = [item.question for item in held_out_questions(world, 100)] * 3
    alone = [retriever.search(text, 3) for text in questions]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda text: retriever.search(text, 3), questions)) == alone


def test_odd_questions_find_nothing_or_something_and_never_fail(retriever: LuceneRetriever) -> None:
    for text in ('"', "AND OR NOT", "title:x~ (", "\\", "   ", "日本語", "a" * 4000):
        assert isinstance(retriever.search(text, 3), list)


def test_look_up_by_id(retriever: LuceneRetriever, world: World) -> None:
    ids = [world.held_out[3].passage_id, world.held_out[1].passage_id]
    assert [passage.id for passage in retriever.get(ids)] == ids
    with pytest.raises(PassageNotFound, match="no passage 'nobody'"):
        retriever.get(["nobody"])


def test_what_cannot_be_indexed_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    twice = [Passage("a", "t", "x"), Passage("a", "t", "y")]
    with pytest.raises(RetrievalError, match="'a' occurs more than once"):
        build_index(twice, str(tmp_path / "i"))
    with pytest.raises(RetrievalError, match="corpus is empty"):
        build_index([], str(tmp_path / "i"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RetrievalError, match="there is no index at"):
        LuceneRetriever(str(tmp_path))
