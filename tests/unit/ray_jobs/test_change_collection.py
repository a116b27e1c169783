"""An addition to a collection is embedded by several workers: what it comes to is what one process makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_jobs.change_collection import add, forget
from regrad.data.passages import Passage, encode_passages
from regrad.errors import CorpusError, RetrievalError
from regrad.lab.files import held_out_corpus
from regrad.lab.world import World
from regrad.retrieval.base import open_retriever
from regrad.retrieval.collection import location, read_version
from regrad.retrieval.collection_changes import changing, create_collection, write_segment
from regrad.retrieval.config import DenseConfig, EncoderConfig
from regrad.retrieval.dense import build_dense_index, passages_encoder, with_question_encoder
from regrad.retrieval.embedding import Vectors
from regrad.retrieval.encoder import Encoder
from regrad.storage import Storage
from tests.tools.blocks import SILENT, part_rows_here
from tests.tools.encoders import random_transformer
from tests.tools.refusals import refused

BLOCK, FIRST, ADDED = 7, 12, 24


@contextmanager
def silent(*_: object) -> Iterator[Any]:
    yield SILENT


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks and actors are this process's, and a block is small."""
    for module in ("embedding", "change_collection"):
        monkeypatch.setattr(f"ray_jobs.{module}.cluster", nullcontext)
        monkeypatch.setattr(f"ray_jobs.{module}.run_task", lambda call, *arguments, **options: call(*arguments))
    monkeypatch.setattr("ray_jobs.change_collection.wait_for_room", lambda workers: None)
    for name in ("require_workers", "wait_for_room"):
        monkeypatch.setattr(f"ray_jobs.embedding.{name}", lambda workers: None)
    for name in ("progress_bar", "progress_channel"):
        monkeypatch.setattr(f"ray_jobs.embedding.{name}", silent)
    monkeypatch.setattr("ray_jobs.embedding.device", lambda: "cpu")
    monkeypatch.setattr("ray_jobs.embedding.part_rows", part_rows_here)
    monkeypatch.setattr("ray_jobs.change_collection.PART_PASSAGES", BLOCK)
    monkeypatch.setattr("regrad.retrieval.dense.DenseConfig", partial(DenseConfig, part_passages=BLOCK))


@pytest.fixture(scope="module")
def corpus(world: World) -> list[Passage]:
    return held_out_corpus(world)[: FIRST + ADDED]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    return EncoderConfig(path=random_transformer(tmp_path_factory.mktemp("encoder")), batch_size=4)


@pytest.fixture(params=["plain", "trained"])
def collection(request: pytest.FixtureRequest, tmp_path: Path, corpus: list[Passage], encoder: EncoderConfig) -> str:
    """Of the first passages, by an index as it is made, or one with a question encoder of its own."""
    index, uri = f"{tmp_path}/index", f"{tmp_path}/collection"
    build_dense_index(corpus[:FIRST], index, Encoder(encoder, "cpu"), DenseConfig(encoder=encoder))
    if request.param == "trained":
        with_question_encoder(index, Path(encoder.path), passages_encoder(index), f"{tmp_path}/trained", {"steps": 3})
        index = f"{tmp_path}/trained"
    create_collection(uri, [index])
    return uri


@pytest.fixture
def more(tmp_path: Path, corpus: list[Passage]) -> str:
    """The passages to add, in a file."""
    path = tmp_path / "more.jsonl"
    path.write_bytes(encode_passages(corpus[FIRST:]))
    return str(path)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Encoder, int]]:
    """The encoders and sizes of the blocks that are encoded from now on."""
    found: list[tuple[Encoder, int]] = []
    encode = Encoder.encode_passages

    def counted(self: Encoder, passages: Sequence[Passage]) -> Vectors:
        found.append((self, len(passages)))
        return encode(self, passages)

    monkeypatch.setattr(Encoder, "encode_passages", counted)
    return found


def stopped_at(block: int, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], Any]) -> None:
    """Encoding this block (from 1) gives what `fail` gives, or raises."""
    calls = iter(range(1, 1000))
    encode = Encoder.encode_passages
    monkeypatch.setattr(
        Encoder, "encode_passages", lambda self, given: fail() if next(calls) == block else encode(self, given)
    )


def interrupt() -> None:
    raise KeyboardInterrupt


def files(folder: str) -> dict[str, bytes]:
    storage = Storage(folder)
    return {name: storage.read(name) for name in storage.files()}


@pytest.mark.slow
def test_the_indexes_of_an_addition_are_those_of_one_process(
    collection: str, more: str, corpus: list[Passage], encoded: list[tuple[Encoder, int]]
) -> None:
    with changing(collection) as version:
        alone = write_segment(collection, version, lambda: corpus[FIRST:])
    expected = files(location(collection, alone.indexes[0]))
    encoded.clear()
    version, built = add(collection, more, ["cluster.workers=3"])
    assert built is None
    assert version.segments[1] == alone
    assert files(location(collection, alone.indexes[0])) == expected
    assert [size for _, size in encoded] == [BLOCK, BLOCK, BLOCK, ADDED - 3 * BLOCK]
    assert len({id(by) for by, _ in encoded}) == 3
    assert read_version(collection) == version and version.passages == FIRST + ADDED
    assert Storage(collection).list() == ["regrad-index.json", "segments", "versions"]
    with open_retriever(collection) as index:
        assert index.known([passage.id for passage in corpus]) == {passage.id for passage in corpus}


def test_a_block_or_less_is_embedded_where_it_is_indexed(
    collection: str, tmp_path: Path, corpus: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.embedding.part_rows", lambda *arguments: pytest.fail("a pool"))
    for number, count in enumerate((1, BLOCK), start=1):
        (tmp_path / "few.jsonl").write_bytes(encode_passages(corpus[FIRST : FIRST + count]))
        assert add(collection, str(tmp_path / "few.jsonl"))[0].segments[number].passages == count


def test_stopped_anywhere_it_is_not_found_and_the_same_call_embeds_what_is_missing(
    collection: str, more: str, corpus: list[Passage], encoded: list[tuple[Encoder, int]]
) -> None:
    before = read_version(collection)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped_at(3, patch, interrupt)
        add(collection, more)
    assert read_version(collection) == before
    forget(collection, [corpus[0].id])  # a version more, so that the addition gets another number
    encoded.clear()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ray_jobs.change_collection.publish", lambda *arguments: interrupt())
        add(collection, more)
    assert [size for _, size in encoded] == [BLOCK, ADDED - 3 * BLOCK]
    encoded.clear()
    version, _ = add(collection, more)
    assert not encoded
    assert version.passages == FIRST - 1 + ADDED
    assert Storage(collection).list() == ["regrad-index.json", "segments", "versions"]


@pytest.mark.parametrize("problem", ["vector", "line", "twice"])
def test_an_error_of_a_worker_or_of_the_corpus_is_itself_and_changes_nothing(
    collection: str, more: str, corpus: list[Passage], monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    before = read_version(collection)
    if problem == "vector":
        stopped_at(2, monkeypatch, lambda: np.full((BLOCK, 32), np.nan, np.float32))
    if problem != "vector":
        wrong = b"{}\n" if problem == "line" else encode_passages(corpus[FIRST : FIRST + 1])
        Path(more).write_bytes(Path(more).read_bytes() + wrong)
    kind, code = {
        "vector": (RetrievalError, "not_finite"),
        "line": (CorpusError, "missing_field"),
        "twice": (RetrievalError, "duplicate_id"),
    }[problem]
    with refused(kind, code):
        add(collection, more)
    assert read_version(collection) == before
