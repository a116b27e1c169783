"""Indexes by real workers: stopped in the middle, the same command goes on, to what one process makes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_jobs import index_corpus
from regrad.data.passages import encode_passages
from regrad.lab.files import held_out_corpus
from regrad.lab.world import World
from regrad.retrieval.base import open_retriever
from regrad.retrieval.bm25 import build_index
from regrad.retrieval.config import DenseConfig, EncoderConfig, IndexConfig
from regrad.retrieval.dense import build_dense_index
from regrad.retrieval.encoder import Encoder
from regrad.settings import builtin_config, load_settings
from regrad.storage import Storage, parts_uri
from tests.integration.conftest import environment, kill_all
from tests.tools.encoders import random_transformer
from tests.tools.patience import Deadline

PASSAGES, BLOCK = 120, 4


def settings(output: Path, corpus: Path, encoder: str, workers: int) -> list[str]:
    values = [f"output={output}", f"corpus={corpus}", f"dense.encoder.path={encoder}", f"cluster.workers={workers}"]
    return [*values, f"dense.part_passages={BLOCK}", "dense.encoder.batch_size=2"]


def start(values: list[str]) -> subprocess.Popen[str]:
    options = [part for value in values for part in ("--set", value)]
    config = str(builtin_config("jobs/index-lab.yaml"))
    return subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.index_corpus", "--config", config, *options],
        env=environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_killed_job_is_resumed_and_makes_the_index_of_one_process(
    tmp_path: Path, world: World, local_cluster: str, caplog: pytest.LogCaptureFixture
) -> None:
    passages = held_out_corpus(world)[:PASSAGES]
    output, corpus = tmp_path / "index", tmp_path / "corpus.jsonl"
    corpus.write_bytes(encode_passages(passages))
    encoder = random_transformer(tmp_path, layers=24)  # so slow that there is something to interrupt
    parts = Path(parts_uri(str(output)))

    process, deadline = start(settings(output, corpus, encoder, workers=1)), Deadline(120)
    while len(done := list(parts.glob("*.safetensors"))) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert not deadline.over
        time.sleep(0.02)
    kill_all(process)
    assert not output.exists()
    done = list(parts.glob("*.safetensors"))
    assert 3 <= len(done) < PASSAGES // BLOCK

    values = settings(output, corpus, encoder, workers=2)
    with caplog.at_level("INFO"):
        line = index_corpus.run(load_settings(IndexConfig, builtin_config("jobs/index-lab.yaml"), values))
    assert f"{BLOCK * len(done)} of {PASSAGES} passages were embedded by an earlier run" in caplog.text
    assert line.startswith(f"DENSE index at {output}: {PASSAGES} passages, searched by flat (exact: up to 300,000")
    assert not parts.exists()

    config = EncoderConfig(path=encoder, batch_size=2)
    how = DenseConfig(encoder=config, part_passages=BLOCK)
    build_dense_index(passages, str(tmp_path / "alone"), Encoder(config, "cpu"), how)
    for file in ("vectors.f32", "encoder.json", "passages.sqlite", "regrad-index.json"):
        assert (output / file).read_bytes() == (tmp_path / "alone" / file).read_bytes(), file
    with open_retriever(str(output)) as index:
        assert len(index.search_ids(["Where was Anna born?"], 3)[0]) == 3


def test_shards_of_a_lexical_index_are_built_by_tasks_and_found_by_a_second_run(
    tmp_path: Path, world: World, local_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = held_out_corpus(world)[:40]
    (tmp_path / "corpus.jsonl").write_bytes(encode_passages(passages))
    config = IndexConfig(corpus=f"{tmp_path}/corpus.jsonl", output=f"{tmp_path}/index", shards=3)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "remove", lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            index_corpus.run(config)
    assert len(list(Path(parts_uri(config.output)).glob("*/shard.json"))) == 3
    assert index_corpus.run(config) == f"BM25 index at {tmp_path}/index: 40 passages"
    assert not Path(parts_uri(config.output)).exists()
    build_index(passages, f"{tmp_path}/alone")
    asked = [passage.text for passage in passages[:5]]
    with open_retriever(config.output) as index, open_retriever(f"{tmp_path}/alone") as alone:
        for ours, theirs in zip(index.search_ids(asked, 40), alone.search_ids(asked, 40), strict=True):
            assert dict(ours) == {name: pytest.approx(score, abs=1e-4) for name, score in theirs}
