"""An index made anew beside training: what its failures become, and the parts that a worker reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from ray_jobs.refreshing import RefresherBeside, check_vectors_place, discard_vectors, passages_identity, vectors_uri
from ray_jobs.run_settings import UNFINISHED, run_storage
from ray_jobs.train_runner import run_directory
from regrad.errors import RetrievalError, StorageError, TrainingError
from regrad.lab.config import LabEncoderConfig
from regrad.lab.encoder import write_encoder
from regrad.retrieval.config import DenseConfig, EncoderConfig
from regrad.retrieval.dense import DenseRetriever, build_dense_index
from regrad.retrieval.embedding import embed, encode_part, part_name
from regrad.retrieval.encoder import Encoder
from regrad.settings import builtin_config, load_settings
from regrad.storage import Storage, parts_uri
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.learner import open_dense
from regrad.training.workers import Workers
from tests.tools.refusals import refused
from tests.unit.training.retriever.test_learner import corpus


@pytest.fixture
def index(tmp_path: Path) -> DenseRetriever:
    write_encoder(LabEncoderConfig(output=f"{tmp_path}/encoder", dimensions=16))
    encoder = EncoderConfig(path=f"{tmp_path}/encoder")
    dense = DenseConfig(encoder=encoder, vectors="flat")
    build_dense_index(corpus(), f"{tmp_path}/index", Encoder(encoder, "cpu"), dense)
    return open_dense(f"{tmp_path}/index", 1, "cpu")


def settings(folder: Path, *extra: str) -> RetrieverTrainConfig:
    values = [f"index={folder}/index", f"output={folder}/trained", "others=[]", "questions.path=unread.jsonl"]
    return load_settings(RetrieverTrainConfig, builtin_config("jobs/retriever-lab.yaml"), [*values, *extra])


def refreshing_settings(folder: Path, *extra: str) -> RetrieverTrainConfig:
    passages = f"passages={{encoder: {folder}/new, corpus: {folder}/corpus.jsonl, part_passages: 5}}"
    return settings(folder, passages, *extra)


def beside(folder: Path, index: DenseRetriever, rank: int = 0) -> RefresherBeside:
    return RefresherBeside(refreshing_settings(folder), index, Workers(rank, 2, 2))


@pytest.mark.parametrize(
    ("raised", "kind", "code"),
    [
        (ray.exceptions.WorkerCrashedError(), TrainingError, "refresh_died"),
        (ray.exceptions.OutOfMemoryError("no room"), TrainingError, "refresh_died"),
        (RetrievalError("its vectors are damaged", code="damaged"), RetrievalError, "damaged"),
        (ValueError("a defect"), TrainingError, "refresh_died"),
    ],
    ids=lambda value: str(getattr(value, "__name__", type(value).__name__)),
)
def test_what_ends_the_task_is_an_error_of_ours(
    tmp_path: Path,
    index: DenseRetriever,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    kind: type[Any],
    code: str,
) -> None:
    def get(task: object) -> None:
        if isinstance(raised, ray.exceptions.RayError):
            raise raised
        raise ray.exceptions.RayTaskError("embed", "traceback", raised)

    monkeypatch.setattr(ray, "get", get)
    refresher = beside(tmp_path, index)
    refresher._task = object()
    with refused(kind, code):
        refresher.wait()
    refresher.wait()  # it is waited for once


def test_a_worker_reads_the_parts_of_its_own_passages_in_their_order(tmp_path: Path, index: DenseRetriever) -> None:
    refresher = beside(tmp_path, index, rank=1)
    refresher.start(index.encoder)  # the first worker alone starts a task
    identity = passages_identity(index.encoder)
    place = parts_uri(f"{tmp_path}/trained.vectors/{identity.digest[:16]}")
    with refused(TrainingError, "other_corpus", passage_id=corpus()[0].id):
        refresher.read()
    expected = []
    for block in index.blocks(5):
        expected.append(embed(block, index.encoder))
        Storage(place).write(part_name(block, identity), encode_part(expected[-1]))
    assert np.array_equal(refresher.read(), np.concatenate(expected))
    damaged = part_name(next(iter(index.blocks(5))), identity)
    Storage(place).write(damaged, b"no part")
    with refused(RetrievalError, "damaged", file=damaged):
        refresher.read()


def test_a_run_removes_what_its_refreshes_left_and_nothing_if_it_made_none(tmp_path: Path) -> None:
    plain, refreshing_run = settings(tmp_path), refreshing_settings(tmp_path)
    assert vectors_uri(plain) == vectors_uri(refreshing_run)
    Storage(vectors_uri(plain)).write("somebody-elses.txt", b"x")
    discard_vectors(plain)
    assert Storage(vectors_uri(plain)).exists("somebody-elses.txt")
    discard_vectors(refreshing_run)
    assert not Path(vectors_uri(plain)).exists()


def test_what_is_not_a_runs_own_is_not_in_the_place_of_its_vectors(tmp_path: Path) -> None:
    config = refreshing_settings(tmp_path)
    check_vectors_place(config)
    Storage(vectors_uri(config)).write("somebody-elses.txt", b"x")
    with refused(StorageError, "occupied", uri=vectors_uri(config)):
        check_vectors_place(config)
    check_vectors_place(config.model_copy(update={"passages": None}))
    run_storage(config).write(UNFINISHED, b"{}")
    check_vectors_place(config)


def test_a_run_whose_refresh_failed_may_go_on_with_other_workers_for_it(tmp_path: Path) -> None:
    with run_directory(refreshing_settings(tmp_path, "passages.cluster.workers=4"), {}):
        pass
    with run_directory(refreshing_settings(tmp_path, "passages.cluster.workers=1"), {}) as place:
        assert place.resumed
    other = run_directory(refreshing_settings(tmp_path, "passages.every=7"), {})
    with refused(TrainingError, "run_of_other_settings", keys=["passages.every"]), other:
        pass
