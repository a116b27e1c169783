"""What differs by kind of index is said by the kind's class: an invented kind is known everywhere by its name alone."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.index_corpus import run
from regrad.data.passages import Passage, encode_passages
from regrad.errors import RetrievalError
from regrad.retrieval.base import CARD, FOREIGN, RETRIEVERS, check_index, kind_of, may_change, open_retriever
from regrad.retrieval.collection_changes import create_collection
from regrad.retrieval.config import FuseConfig, IndexConfig
from regrad.retrieval.fused import fuse_indexes
from regrad.retrieval.whole_check import Checked, check_whole
from tests.tools.mirrored import build_mirrored_index
from tests.tools.overlap import build_overlap_index
from tests.tools.refusals import refused

ROOT = Path(__file__).parents[3]
PASSAGES = [Passage("one", "", "a fox"), Passage("two", "", "a fox and an owl"), Passage("three", "", "a hen")]
SOURCES = [path for part in ("regrad", "ray_jobs", "serve_app") for path in sorted((ROOT / part).rglob("*.py"))]


@pytest.fixture(autouse=True)
def _invented_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RETRIEVERS, "overlap", "tests.tools.overlap:OverlapRetriever")
    monkeypatch.setitem(RETRIEVERS, "mirrored", "tests.tools.mirrored:MirroredRetriever")


@pytest.fixture
def inner(tmp_path: Path) -> str:
    build_overlap_index(PASSAGES, f"{tmp_path}/inner")
    return f"{tmp_path}/inner"


@pytest.fixture
def mirror(tmp_path: Path, inner: str) -> str:
    build_mirrored_index(inner, f"{tmp_path}/mirror")
    return f"{tmp_path}/mirror"


@pytest.fixture
def changing_mirror(mirror: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The mirror, as an index whose passages come and go."""
    monkeypatch.setitem(RETRIEVERS, "mirrored", "tests.tools.mirrored:ChangingRetriever")
    return mirror


def test_an_index_of_an_invented_kind_is_opened_by_its_card(mirror: str) -> None:
    with open_retriever(mirror) as retriever:
        [hits] = retriever.search(["fox owl"], 2)
    assert [hit.passage for hit in hits] == PASSAGES[:2]


def test_the_check_of_its_kind_is_part_of_checking_an_index(tmp_path: Path, mirror: str) -> None:
    assert check_index(mirror).passages == 3
    build_overlap_index(PASSAGES[:2], f"{tmp_path}/inner")
    for use in (check_index, open_retriever, check_whole):
        with refused(RetrievalError, "other_corpus", uri=mirror):
            use(mirror)


def test_every_byte_of_the_indexes_that_it_names_is_read(tmp_path: Path, inner: str, mirror: str) -> None:
    sizes = [sum(file.bytes for file in check_index(uri).files.values()) for uri in (mirror, inner)]
    assert check_whole(mirror) == [Checked(mirror, "mirrored", sizes[0]), Checked(inner, "overlap", sizes[1])]
    words = tmp_path / "inner" / "words.txt"
    words.write_text(words.read_text().replace("owl", "elk"))
    with refused(RetrievalError, "damaged", uri=inner, file="words.txt"):
        check_whole(mirror)


def test_a_collection_takes_no_index_that_is_made_of_others_or_keeps_no_texts(
    tmp_path: Path, inner: str, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_collection(f"{tmp_path}/taken", [inner])
    with refused(RetrievalError, "bad_kinds", kinds=["mirrored"]):
        create_collection(f"{tmp_path}/all", [mirror])
    monkeypatch.setattr("tests.tools.overlap.OverlapRetriever.HAS_STORE", False)
    with refused(RetrievalError, "bad_kinds", kinds=["overlap"]):
        create_collection(f"{tmp_path}/all", [inner])


def test_what_changes_is_not_fused_even_where_another_index_stands_before_it(
    tmp_path: Path, inner: str, changing_mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RETRIEVERS, "twice", "tests.tools.mirrored:MirroredRetriever")
    build_mirrored_index(changing_mirror, f"{tmp_path}/twice")
    card = tmp_path / "twice" / CARD
    card.write_text(json.dumps({**json.loads(card.read_text()), "kind": "twice"}))
    for index, changes in ((inner, False), (changing_mirror, True), (f"{tmp_path}/twice", True)):
        assert may_change(index, check_index(index)) is changes
    for index in (changing_mirror, f"{tmp_path}/twice"):
        with refused(RetrievalError, "bad_kinds"):
            fuse_indexes(FuseConfig(indexes=(inner, index)), f"{tmp_path}/fused")


def test_what_changes_is_not_written_over(tmp_path: Path, changing_mirror: str) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(encode_passages(PASSAGES))
    with refused(RetrievalError, "exists", uri=changing_mirror):
        run(IndexConfig(corpus=str(tmp_path / "corpus.jsonl"), output=changing_mirror))


def test_a_kind_that_another_program_makes_is_known_by_its_files_and_by_a_name(
    tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mirror" / CARD).unlink()
    with refused(RetrievalError, "not_found", uri=mirror):
        open_retriever(mirror)
    monkeypatch.setitem(RETRIEVERS, "mirrored", "tests.tools.mirrored:UncardedRetriever")
    monkeypatch.setattr("regrad.retrieval.base.FOREIGN", (*FOREIGN, "mirrored"))
    for uri in (mirror, f"mirror-of:{mirror}"):
        with open_retriever(uri) as retriever:
            assert [name for name, _ in retriever.search_ids(["fox owl"], 1)[0]] == ["one"]
    with refused(RetrievalError, "not_found", uri=str(tmp_path)):
        check_index(str(tmp_path))


def test_a_kind_says_how_it_is_searched(inner: str, mirror: str) -> None:
    assert [kind_of(check_index(uri)).how_searched(uri) for uri in (mirror, inner)] == ["a mirror", ""]


def test_no_file_decides_by_the_name_of_a_kind_of_index() -> None:
    assert {name for name, _ in _compared("card.kind == 'dense'\nkinds & {'fused', x}\n'bm25' in kinds\n")} == {
        "dense",
        "fused",
        "bm25",
    }
    found = {str(path.relative_to(ROOT)): list(_compared(path.read_text())) for path in SOURCES}
    assert {file: names for file, names in found.items() if names} == {}


def _compared(source: str) -> Iterator[tuple[str, int]]:
    """Each name of a kind that is compared or intersected with something, and the line."""
    kinds = set(RETRIEVERS) - {"overlap", "mirrored"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd)):
            for inside in ast.walk(node):
                if isinstance(inside, ast.Constant) and inside.value in kinds:
                    yield str(inside.value), inside.lineno
