"""Every kind of retriever, opened by its index's card: BM25 with real Lucene, and one that only these tests know."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from regrad.data.passages import Passage
from regrad.errors import PassageNotFound, RetrievalError
from regrad.lab.files import held_out_corpus, held_out_questions
from regrad.lab.world import World
from regrad.retrieval.base import CARD, RETRIEVERS, Retriever, check_index, open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.collection_changes import changing, create_collection, publish, with_segment, write_segment
from regrad.retrieval.config import DenseConfig, EncoderConfig, FuseConfig
from regrad.retrieval.dense import build_dense_index
from regrad.retrieval.encoder import Encoder
from regrad.retrieval.fused import fuse_indexes
from regrad.retrieval.hits import Hit
from regrad.retrieval.passage_store import FILE, PassageStore, store_passages
from tests.tools.anserini import build_anserini_index
from tests.tools.encoders import bag_of_words
from tests.tools.overlap import build_overlap_index
from tests.tools.refusals import refused


def _dense(passages: Iterable[Passage], uri: str) -> int:
    stored = list(passages)
    config = EncoderConfig(path=bag_of_words(Path(uri).parent / "encoder", stored))
    return build_dense_index(stored, uri, Encoder(config, "cpu"), DenseConfig(encoder=config))


def _fused(passages: Iterable[Passage], uri: str) -> int:
    stored, parts = list(passages), (f"{uri}-lexical", f"{uri}-dense")
    build_index(stored, parts[0])
    _dense(stored, parts[1])
    return fuse_indexes(FuseConfig(indexes=parts), uri)


def _collection(passages: Iterable[Passage], uri: str) -> int:
    """Half of them as they were made, the other half added later."""
    stored = list(passages)
    half = len(stored) // 2
    build_index(stored[:half], f"{uri}-first")
    create_collection(uri, [f"{uri}-first"])
    with changing(uri) as version:
        added = write_segment(uri, version, lambda: stored[half:])
        return publish(uri, with_segment(uri, version, added)).passages


BUILDERS: dict[str, tuple[Callable[..., int], int]] = {
    "bm25": (build_index, 198),
    "dense": (_dense, 120),
    "fused": (_fused, 150),
    "collection": (_collection, 198),
    "overlap": (build_overlap_index, 120),
    "anserini": (build_anserini_index, 198),
}
"""What builds an index of each kind, and of how many among 200 questions it must find the person first."""


@pytest.fixture(scope="module", autouse=True)
def _overlap_is_known() -> Iterator[None]:
    RETRIEVERS["overlap"] = "tests.tools.overlap:OverlapRetriever"
    yield
    del RETRIEVERS["overlap"]


@pytest.fixture(scope="module", params=list(BUILDERS))
def retriever(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    folder = tmp_path_factory.mktemp("index") / request.param
    build, _ = BUILDERS[request.param]
    assert build(held_out_corpus(world), str(folder)) == 400
    opened = open_retriever(str(folder))
    assert opened.card.kind == request.param
    return opened


def test_every_kind_that_is_registered_is_tried_here() -> None:
    # A cross-encoder that orders rightly cannot be had here: test_reranked.py has one of random weights.
    assert set(BUILDERS) == set(RETRIEVERS) - {"reranked"}


def test_the_person_asked_about_is_found_first(retriever: Retriever, world: World) -> None:
    questions = held_out_questions(world, 200)
    found = retriever.search([item.question for item in questions], 3)
    right = sum(hits[0].passage.id == item.passage_id for hits, item in zip(found, questions, strict=True))
    assert right >= BUILDERS[retriever.card.kind][1]


def same(found: Sequence[Sequence[Hit]], expected: Sequence[Sequence[Hit]]) -> bool:
    """The same passages in the same order; an encoder's last digits depend on what shares the batch."""
    return [[(hit.passage, pytest.approx(hit.score, rel=1e-4, abs=1e-5)) for hit in one] for one in expected] == [
        [(hit.passage, hit.score) for hit in one] for one in found
    ]


def test_many_questions_at_once_are_answered_as_each_alone(retriever: Retriever, world: World) -> None:
    questions = [item.question for item in held_out_questions(world, 50)]
    assert same(retriever.search(questions, 5), [retriever.search([one], 5)[0] for one in questions])
    assert retriever.search([], 5) == []


def test_scores_fall_and_passages_are_whole(retriever: Retriever, world: World) -> None:
    corpus = {passage.id: passage for passage in held_out_corpus(world)}
    [hits] = retriever.search([f"Where was {world.held_out[0].name} born?"], 10)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(corpus[hit.passage.id] == hit.passage for hit in hits)


@pytest.mark.parametrize("k", [401, 2**40])
def test_k_may_exceed_the_corpus(retriever: Retriever, k: int) -> None:
    [hits] = retriever.search(["Where was she born?"], k)
    assert 0 < len(hits) <= 400
    assert len({hit.passage.id for hit in hits}) == len(hits)


def test_what_is_no_search_is_refused(retriever: Retriever) -> None:
    with refused(RetrievalError, "bad_k", k=0):
        retriever.search(["Where was she born?"], 0)
    with pytest.raises(TypeError, match="put a single one into a list"):
        retriever.search("Where was she born?", 3)


def test_a_question_with_a_character_that_is_in_no_text_is_searched_without_it(retriever: Retriever) -> None:
    odd, plain = retriever.search(["Where was \ud800 she born?", "Where was she born?"], 5)
    assert same([odd], [plain])


@pytest.mark.slow
def test_many_threads_may_search_at_once(retriever: Retriever, world: World) -> None:
    questions = [item.question for item in held_out_questions(world, 100)] * 3
    alone = [retriever.search([text], 3) for text in questions]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda text: retriever.search([text], 3), questions))
    assert all(map(same, found, alone))


ODD = {
    "quote": '"',
    "operators": "AND OR NOT",
    "syntax": "title:x~ (",
    "backslash": "\\",
    "blank": "   ",
    "empty": "",
    "stop words": "the of and a",
    "another script": "日本語",
    "10000 characters without spaces": "".join(map(chr, range(0x4E00, 0x4E00 + 10_000))),
    "lone surrogate": "born \ud800",
    "long word": "a" * 4000,
    "10000 words": "word " * 10_000,
}


@pytest.mark.parametrize("question", ODD.values(), ids=ODD)
def test_odd_questions_find_nothing_or_something_and_never_fail(retriever: Retriever, question: str) -> None:
    alone, beside = retriever.search([question], 3), retriever.search([question, "born"], 3)
    assert len(alone) == 1
    assert same(alone, beside[:1])


def test_ids_are_those_of_the_passages(retriever: Retriever) -> None:
    [hits] = retriever.search(["Where was she born?"], 7)
    assert retriever.search_ids(["Where was she born?"], 7) == [[(hit.passage.id, hit.score) for hit in hits]]


def test_look_up_by_id(retriever: Retriever, world: World) -> None:
    ids = [world.held_out[3].passage_id, world.held_out[1].passage_id, world.held_out[3].passage_id]
    assert [passage.id for passage in retriever.passages(ids)] == ids
    for unknown in ("nobody", "\ud800"):
        with refused(PassageNotFound, passage_id=unknown):
            retriever.passages([ids[0], unknown])


@pytest.mark.slow
def test_what_cannot_be_indexed_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    twice = [Passage("a", "t", "x"), Passage("a", "t", "y")]
    with refused(RetrievalError, "duplicate_id", passage_id="a"):
        build_index(twice, str(tmp_path / "i"))
    with refused(RetrievalError, "empty_corpus"):
        build_index([], str(tmp_path / "i"))
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_was_copied_in_part_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    build_overlap_index([Passage("a", "t", "x")], str(tmp_path / "i"))
    words = tmp_path / "i" / "words.txt"
    whole = words.read_bytes()
    words.write_bytes(whole[:-1])
    with refused(RetrievalError, "incomplete", file="words.txt", bytes=len(whole) - 1, expected=len(whole)):
        check_index(str(tmp_path / "i"))
    words.unlink()
    with refused(RetrievalError, "incomplete", file="words.txt", bytes=0, expected=len(whole)):
        open_retriever(str(tmp_path / "i"))


def test_the_card_changes_with_any_file(tmp_path: Path) -> None:
    for name, word in (("a", "x"), ("b", "x"), ("c", "y")):
        build_overlap_index([Passage("a", "t", word)], str(tmp_path / name))
    a, b, c = (check_index(str(tmp_path / name)) for name in "abc")
    assert a == b != c


def test_what_lucene_cannot_read_is_refused_with_what_to_do(tmp_path: Path) -> None:
    build_index([Passage("a", "t", "x")], str(tmp_path / "i"))
    [segments] = (tmp_path / "i" / "lucene").glob("segments_*")
    segments.write_bytes(bytes(segments.stat().st_size))
    with refused(RetrievalError, "damaged"):
        open_retriever(str(tmp_path / "i"))


def test_what_is_no_index_of_this_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with refused(RetrievalError, "not_found", uri=str(tmp_path)):
        open_retriever(str(tmp_path))
    old = ({"format": 1, "passages": 3}, {"format": 2, "kind": "bm25", "passages": 3, "files": {}})
    for card, found in (*((one, one["format"]) for one in old), (["x"], "unknown"), ({}, "unknown")):
        (tmp_path / CARD).write_text(json.dumps(card))
        with refused(RetrievalError, "other_format", uri=str(tmp_path), found=found, expected=3):
            check_index(str(tmp_path))
    (tmp_path / CARD).write_text('{"format": 3,')
    with refused(RetrievalError, "other_format", found="unknown (it is not JSON)"):
        check_index(str(tmp_path))
    (tmp_path / CARD).write_text(json.dumps({"format": 3, "kind": "bm25", "passages": "many", "files": {}}))
    with refused(RetrievalError, "damaged", file=CARD):
        check_index(str(tmp_path))
    (tmp_path / CARD).write_text(json.dumps({"format": 3, "kind": "bm52", "passages": 3, "files": {}}))
    with refused(RetrievalError, "unknown_name", name="bm52", near="bm25"):
        check_index(str(tmp_path))


def test_a_store_that_is_damaged_or_absent_says_so(tmp_path: Path) -> None:
    with refused(RetrievalError, "incomplete", file="passages.sqlite"):
        PassageStore(tmp_path)
    many = [Passage(f"p{i}", "t", "text " * 50) for i in range(3000)]
    assert sum(len(batch) for batch in store_passages(many, tmp_path)) == 3000
    store = PassageStore(tmp_path)
    assert len(store) == 3000
    assert store.passages(["p2999", "p0"]) == [many[2999], many[0]]
    assert store.passages([p.id for p in many]) == many
    store.close()
    (tmp_path / FILE).write_bytes(b"no database at all, but some bytes " * 100)
    with refused(RetrievalError, "damaged"):
        PassageStore(tmp_path).passages(["p0"])


def test_a_text_that_is_not_what_was_written_is_not_handed_out(tmp_path: Path) -> None:
    passages = [Passage(f"p{i}", "", f"the words of number {i}") for i in range(3)]
    assert list(store_passages(passages, tmp_path)) == [passages]
    written = (tmp_path / FILE).read_bytes()
    assert written.count(b"words of number 1") == 1
    (tmp_path / FILE).write_bytes(written.replace(b"words of number 1", b"swords of umber 1"))
    store = PassageStore(tmp_path)
    assert store.passages(["p0", "p2"]) == [passages[0], passages[2]]
    with refused(RetrievalError, "damaged", passage_id="p1"):
        store.passages(["p1"])


def test_a_repeated_id_is_found_however_far_apart(tmp_path: Path) -> None:
    many = [Passage(f"p{i}", "", "x") for i in range(2500)]
    with refused(RetrievalError, "duplicate_id", passage_id="p7"):
        list(store_passages([*many, Passage("p7", "", "y")], tmp_path))


def test_threads_that_end_leave_no_files_open(tmp_path: Path) -> None:
    passages = [Passage("p", "title", "text")]
    assert list(store_passages(passages, tmp_path)) == [passages]
    store = PassageStore(tmp_path)

    def open_files() -> int:
        here = Path("/proc/self/fd")
        return sum(os.path.realpath(here / name) == str(tmp_path / FILE) for name in os.listdir(here))

    for _ in range(20):
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(store.passages, ["p"]).result() == passages
    assert open_files() == 1
    store.close()
    assert open_files() == 0
