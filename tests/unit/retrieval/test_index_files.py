"""An index in an object store that is damaged there, or in this machine's cache: found, and not kept."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from regrad.cli.main import regrad
from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval import index_files
from regrad.retrieval.base import RETRIEVERS, check_index, open_retriever
from regrad.retrieval.bm25 import build_shard, build_sharded_index
from regrad.retrieval.collection_changes import changing, create_collection, publish, with_segment, write_segment
from regrad.retrieval.config import DenseConfig, EncoderConfig
from regrad.retrieval.dense import build_dense_index
from regrad.retrieval.encoder import Encoder
from regrad.retrieval.whole_check import check_whole
from regrad.storage import Storage, cache_directory
from tests.tools.encoders import bag_of_words
from tests.tools.overlap import build_overlap_index
from tests.tools.refusals import refused

PASSAGES = [Passage(f"p{number}", "", f"word{number} word{number + 1}") for number in range(12)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(RETRIEVERS, "overlap", "tests.tools.overlap:OverlapRetriever")


@pytest.fixture
def remote() -> str:
    return f"memory://{uuid.uuid4().hex}/index"


def flip(uri: str, name: str) -> bytes:
    """Invert every bit of a file, so that its size stays; returns what it was."""
    storage = Storage(uri)
    whole = storage.read(name)
    storage.write(name, bytes(byte ^ 0xFF for byte in whole))
    return whole


def cached() -> list[Path]:
    """The downloads; what is half fetched has a name that begins with a dot."""
    return list(cache_directory().iterdir()) if cache_directory().exists() else []


def test_vectors_in_another_order_are_refused_and_fetched_again_once_they_are_restored(
    tmp_path: Path, remote: str
) -> None:
    encoder = EncoderConfig(path=bag_of_words(tmp_path / "encoder", PASSAGES))
    build_dense_index(PASSAGES, remote, Encoder(encoder, "cpu"), DenseConfig(encoder=encoder))
    storage, name = Storage(remote), "vectors.f32"
    whole = storage.read(name)
    expected = check_index(remote).files[name].sha256
    storage.write(name, whole[-52:] + whole[:-52])
    check_index(remote)  # sizes alone: nothing is read
    with refused(RetrievalError, "damaged", file=name, expected=expected):
        open_retriever(remote)
    assert cached() == []
    storage.write(name, whole)
    with open_retriever(remote) as index:
        assert index.search_ids(["word3"], 1)[0][0][0] in {"p2", "p3"}


def test_a_file_of_lucene_that_lucene_does_not_check_is_refused_when_it_is_fetched(remote: str) -> None:
    def build(wanted: Any) -> list[str]:
        return [build_shard(PASSAGES, shard, f"{remote}.parts", 1, ("contents", "title")) for shard in wanted]

    build_sharded_index(PASSAGES, remote, 2, build)
    norms = next(name for name in check_index(remote).files if name.endswith((".nvd", ".cfs")))
    whole = flip(remote, norms)
    with refused(RetrievalError, "damaged", file=norms):
        open_retriever(remote)
    Storage(remote).write(norms, whole)
    with open_retriever(remote) as index:
        assert len(index.search_ids(["word3"], 5)[0]) == 2


def test_a_shard_that_is_damaged_is_not_put_into_an_index(remote: str) -> None:
    def build(wanted: Any) -> list[str]:
        places = [build_shard(PASSAGES, shard, f"{remote}.parts", 1, ("contents", "title")) for shard in wanted]
        flip(places[1], next(name for name in Storage(places[1]).files() if "_0." in name))
        return places

    with refused(RetrievalError, "damaged"):
        build_sharded_index(PASSAGES, remote, 2, build)
    assert not Storage(remote).exists("regrad-index.json")


def test_what_was_checked_is_not_hashed_again_and_what_was_cut_is_fetched_again(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_overlap_index(PASSAGES, remote)
    open_retriever(remote).close()
    with monkeypatch.context() as patched:
        patched.setattr(index_files, "index_file", lambda path: pytest.fail(f"{path} is hashed again"))
        open_retriever(remote).close()
    (words,) = cache_directory().glob("*/words.txt")
    whole = words.read_bytes()
    words.write_bytes(whole[:-1])
    open_retriever(remote).close()
    assert words.read_bytes() == whole


def test_looking_at_a_collections_texts_checks_them_too(remote: str) -> None:
    build_overlap_index(PASSAGES[:6], f"{remote}-first")
    create_collection(remote, [f"{remote}-first"])
    flip(f"{remote}-first", "passages.sqlite")
    with changing(remote) as version, refused(RetrievalError, "damaged", file="passages.sqlite"):
        added = write_segment(remote, version, lambda: PASSAGES[6:])
        publish(remote, with_segment(remote, version, added))


def test_a_check_reads_all_that_an_index_is_made_of_and_clears_the_cache_of_damage(tmp_path: Path, remote: str) -> None:
    build_overlap_index(PASSAGES, remote)
    build_overlap_index(PASSAGES, f"{tmp_path}/local")
    create_collection(f"{tmp_path}/all", [remote])
    assert [index.uri for index in check_whole(f"{tmp_path}/all")] == [f"{tmp_path}/all", remote]
    open_retriever(remote).close()
    (words,) = cache_directory().glob("*/words.txt")
    words.write_bytes(bytes(len(words.read_bytes())))
    check_whole(remote)
    assert cached() == []
    flip(remote, "words.txt")
    with refused(RetrievalError, "damaged", uri=remote, file="words.txt"):
        check_whole(f"{tmp_path}/all")
    done = CliRunner().invoke(regrad, ["index", "--check", f"{tmp_path}/local"])
    assert done.exit_code == 0, done.output
    assert "OVERLAP index" in done.output
    flip(f"{tmp_path}/local", "words.txt")
    done = CliRunner().invoke(regrad, ["index", "--check", f"{tmp_path}/local"])
    assert isinstance(done.exception, RetrievalError)
