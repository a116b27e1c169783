"""Parts of vectors: whoever makes them, and whenever, the index is the one that one process makes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_jobs.embedding import EmbeddingActor, vectors_of_parts
from ray_jobs.parts import finished
from regrad.data.jsonl import encode_jsonl
from regrad.data.passages import Passage, encode_passages
from regrad.errors import CorpusError, RetrievalError
from regrad.lab.files import held_out_corpus
from regrad.lab.world import World
from regrad.retrieval.config import DenseConfig, EncoderConfig
from regrad.retrieval.dense import build_dense_index, write_dense_index
from regrad.retrieval.embedding import EncoderIdentity, Vectors
from regrad.retrieval.encoder import Encoder
from regrad.storage import Storage, parts_uri
from tests.tools.blocks import SILENT, batch_of, row_of
from tests.tools.encoders import random_transformer
from tests.tools.refusals import refused

BLOCK = 7


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for its GPUs, Ray would start."""
    monkeypatch.setattr("ray_jobs.embedding.device", lambda: "cpu")


@pytest.fixture(scope="module")
def corpus(world: World) -> list[Passage]:
    return held_out_corpus(world)[:40]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> DenseConfig:
    path = random_transformer(tmp_path_factory.mktemp("encoder"))
    return DenseConfig(encoder=EncoderConfig(path=path, batch_size=4), part_passages=BLOCK)


@pytest.fixture(scope="module")
def identity(dense: DenseConfig) -> EncoderIdentity:
    return EncoderIdentity.of(Encoder(dense.encoder, "cpu"))


def batches(corpus: Sequence[Passage]) -> list[dict[str, np.ndarray]]:
    """The blocks of a corpus, as Ray Data hands them out."""
    lines = encode_passages(corpus).splitlines()
    return [batch_of(lines[start : start + BLOCK]) for start in range(0, len(lines), BLOCK)]


def actor(output: Path, identity: EncoderIdentity) -> EmbeddingActor:
    settings = identity.config.model_dump(mode="json")
    return EmbeddingActor(str(output), settings, identity.digest, identity.dimensions)


def assemble(
    output: Path, corpus: Sequence[Passage], dense: DenseConfig, identity: EncoderIdentity, rows: list[dict[str, Any]]
) -> bytes:
    """The vectors of the index that is made of these parts."""

    def vectors(blocks: Iterator[Sequence[Passage]]) -> Iterator[Vectors]:
        return vectors_of_parts(blocks, Storage(parts_uri(str(output))), identity, rows, SILENT)

    write_dense_index(corpus, vectors, str(output), identity, dense)
    return (output / "vectors.f32").read_bytes()


@pytest.mark.parametrize("actors", [1, 3])
def test_vectors_are_those_of_one_process_whatever_the_number_of_actors_and_their_order(
    tmp_path: Path, corpus: list[Passage], dense: DenseConfig, identity: EncoderIdentity, actors: int
) -> None:
    pool = [actor(tmp_path / "parts", identity) for _ in range(actors)]
    blocks = list(enumerate(batches(corpus)))
    random.Random(0).shuffle(blocks)
    rows = {place: row_of(pool[turn % actors](batch)) for turn, (place, batch) in enumerate(blocks)}
    found = assemble(tmp_path / "parts", corpus, dense, identity, [rows[place] for place in sorted(rows)])
    build_dense_index(corpus, str(tmp_path / "alone"), Encoder(dense.encoder, "cpu"), dense)
    for file in ("vectors.f32", "encoder.json", "passages.sqlite"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes(), file
    assert len(found) == 4 * 32 * len(corpus)


def test_a_whole_part_is_not_made_again_and_a_damaged_one_is(
    tmp_path: Path,
    corpus: list[Passage],
    identity: EncoderIdentity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = batches(corpus)[:2]
    before = [row_of(actor(tmp_path / "index", identity)(batch)) for batch in (first, second)]
    assert [row["made"] for row in before] == [True, True]
    file = Path(parts_uri(str(tmp_path / "index"))) / before[1]["name"]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    asked = count_calls(monkeypatch)
    after = [row_of(actor(tmp_path / "index", identity)(batch)) for batch in (first, second)]
    assert [row["made"] for row in after] == [False, True]
    assert len(asked) == 1
    assert file.read_bytes() == whole


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the blocks that are encoded from now on."""
    asked: list[int] = []
    encode = Encoder.encode_passages

    def counted(self: Encoder, passages: Sequence[Passage]) -> Vectors:
        asked.append(len(passages))
        return encode(self, passages)

    monkeypatch.setattr(Encoder, "encode_passages", counted)
    return asked


@pytest.mark.parametrize(
    "change", [lambda rows: rows[:-1], lambda rows: [*rows, rows[0]], lambda rows: [rows[1], rows[0], *rows[2:]]]
)
def test_parts_of_another_corpus_or_in_another_order_are_refused_and_nothing_is_left(
    tmp_path: Path,
    corpus: list[Passage],
    dense: DenseConfig,
    identity: EncoderIdentity,
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
) -> None:
    rows = [row_of(actor(tmp_path / "index", identity)(batch)) for batch in batches(corpus)]
    with refused(RetrievalError, "corpus_changed"):
        assemble(tmp_path / "index", corpus, dense, identity, change(rows))
    assert not (tmp_path / "index").exists()


def test_errors_leave_an_actor_as_themselves(
    tmp_path: Path, corpus: list[Passage], identity: EncoderIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = actor(tmp_path / "index", identity)
    with pytest.raises(CorpusError):
        list(finished([row_of(made(batch_of([encode_jsonl([{"id": "a"}]).strip()])))]))
    batch = batches(corpus)[0]
    for problem, code in ((torch.OutOfMemoryError(), "out_of_memory"), (np.full((BLOCK, 32), np.nan), "not_finite")):

        def fail(self: Encoder, passages: Sequence[Passage], problem: Any = problem) -> Any:
            if isinstance(problem, Exception):
                raise problem
            return problem

        monkeypatch.setattr(Encoder, "encode_passages", fail)
        with refused(RetrievalError, code):
            list(finished([row_of(made(batch))]))
    other = EncoderIdentity(identity.config, "0" * 64, identity.dimensions)
    with refused(RetrievalError, "other_encoder", expected="0" * 64):
        list(finished([row_of(actor(tmp_path / "index", other)(batch))]))
