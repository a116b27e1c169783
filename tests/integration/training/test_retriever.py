"""Training a retriever as a job: what one process would make, and resuming after a failure."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ray_jobs import refreshing, train_retriever
from ray_jobs.cluster import cluster
from ray_jobs.refreshing import RefresherBeside
from regrad.data.corpora import read_passages
from regrad.data.jsonl import encode_jsonl
from regrad.data.passages import encode_passages
from regrad.errors import Interrupted, PromptTooLong, TrainingError
from regrad.lab.config import LabConfig, LabEncoderConfig
from regrad.lab.encoder import write_encoder
from regrad.lab.files import write_hard_lab
from regrad.retrieval.base import open_retriever
from regrad.retrieval.config import DenseConfig, EncoderConfig
from regrad.retrieval.dense import DenseRetriever, build_dense_index
from regrad.retrieval.encoder import Encoder
from regrad.settings import builtin_config, load_settings
from regrad.training.callbacks import Silent
from regrad.training.checkpoint import TrainCheckpoint
from regrad.training.lora.lora_artifact import StaticLora
from regrad.training.retriever.artefact import TrainedSelector
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.run import read_asked, retriever_worker, train_retriever_in_process
from regrad.training.sampler import batches_of
from tests.tools.refusals import refused
from tests.unit.retrieval.test_reranked import save_cross_encoder

pytestmark = pytest.mark.usefixtures("local_cluster")

_WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retriever")
    write_hard_lab(LabConfig(output=str(folder), variant="many", documents=4, task_records=1))
    (folder / "few.jsonl").write_bytes(encode_passages(list(read_passages(f"{folder}/corpus.jsonl"))[:20]))
    write_encoder(LabEncoderConfig(output=f"{folder}/encoder", dimensions=32))
    config = DenseConfig(encoder=EncoderConfig(path=f"{folder}/encoder"))
    for corpus, name in (("documents", "train-index"), ("few", "index")):
        encoder = Encoder(config.encoder, "cpu")
        build_dense_index(read_passages(f"{folder}/{corpus}.jsonl"), f"{folder}/{name}", encoder, config)
    return folder


def settings(lab: Path, output: Path, *extra: str) -> RetrieverTrainConfig:
    values = [f"index={lab}/train-index", f"output={output}/trained", "k=3", "optimizer.steps=4"]
    values += [f"others=[{{index: {lab}/index, output: {output}/other}}]", "optimizer.batch_size=4"]
    values += [f"questions.path={lab}/document-questions.jsonl", "checkpoints.every=2", "watch.tensorboard=false"]
    return load_settings(RetrieverTrainConfig, builtin_config("jobs/retriever-lab.yaml"), [*values, *extra])


def test_a_job_that_failed_is_resumed_and_writes_indexes_with_the_encoder_of_one_process(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(lab, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(train_retriever, "write_trained", _fail)  # after the last checkpoint, before there is a result
        with pytest.raises(RuntimeError, match="killed"):
            train_retriever.run(config)
    assert not (tmp_path / "trained").exists()
    line = train_retriever.run(config)
    assert line.startswith(f"retriever at {tmp_path}/trained and {tmp_path}/other (40 passages): jsa under rag, 20 ")
    assert not (tmp_path / "trained.training").exists()
    alone = train_retriever_in_process(config).encoder.digest()
    for name in ("trained", "other"):
        with open_retriever(f"{tmp_path}/{name}") as retriever:
            assert isinstance(retriever, DenseRetriever)
            assert retriever.encoder.digest() == alone
            assert len(retriever.search_ids(["Where was Anna born?"], 3)[0]) == 3
    finished = f"finished already: retriever at {tmp_path}/trained and {tmp_path}/other"
    assert train_retriever.run(config).startswith(finished)
    with refused(TrainingError, "finished_with_other_settings", keys=["optimizer.lr"]):
        train_retriever.run(settings(lab, tmp_path, "optimizer.lr=0.5"))
    shutil.rmtree(tmp_path / "other")
    assert train_retriever.run(config) == line, "one of its results was lost"


def test_both_encoders_and_the_generator_are_trained_while_the_index_is_made_anew(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First its corpus is lost on the way: the refresh is an error, and the same command goes on where it was."""
    corpus = Path(shutil.copy(lab / "documents.jsonl", tmp_path))
    passages = f"{{encoder: {tmp_path}/encoder, corpus: {corpus}, every: 2, delay: 1, part_passages: 7}}"
    extra = [f"passages={passages}", f"generator={{output: {tmp_path}/generator, lr: 0.001}}", "checkpoints.every=100"]
    extra.append("batch_tokens=100")  # a step is of several passes of each
    config = settings(lab, tmp_path, *extra, "others=[]")
    with monkeypatch.context() as patch, refused(Interrupted, "refresh_failed", step=3):
        patch.setattr(train_retriever, "require_together", lambda _: corpus.unlink())  # after all that is checked
        train_retriever.run(config)
    shutil.copyfile(lab / "documents.jsonl", corpus)
    assert train_retriever.run(config).endswith(f"generator at {tmp_path}/generator")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("trained.", ".trained"))]

    alone = train_retriever_in_process(config)
    assert alone.passages is not None
    expected = alone.passages.encode_passages(list(read_passages(str(corpus))))
    with open_retriever(f"{tmp_path}/trained") as retriever:
        assert isinstance(retriever, DenseRetriever)
        assert retriever.encoder.digest() == alone.encoder.digest()
        assert np.allclose(retriever.vectors, expected, atol=1e-6)
    card = json.loads((tmp_path / "trained" / "encoder.json").read_text())
    assert [one["made_at"] for one in card["question_encoder"]["notes"]["refreshes"]] == [2]
    assert StaticLora.load(tmp_path / "generator").notes["steps"] == 4


def test_two_workers_that_share_with_deepspeed_take_small_passes_to_what_one_has_of_a_large_one(
    lab: Path, tmp_path: Path
) -> None:
    """With a selector, whose pairs are many and whose activations are computed again."""
    save_cross_encoder(tmp_path / "begin", 0.1)
    selector = f"selector={{model: {tmp_path}/begin, output: {tmp_path}/selector}}"
    extra = [selector, "others=[]", "objective={kind: marginal}", "temperature=1", "optimizer.steps=2"]
    small = settings(lab, tmp_path, *extra, "cluster.workers=2", "optimizer.zero_stage=2", "batch_tokens=60")
    train_retriever.run(small)
    alone = train_retriever_in_process(settings(lab, tmp_path, *extra, "batch_tokens=1000000"))
    assert isinstance(alone, TrainedSelector)
    before, found = load_file(tmp_path / "begin" / _WEIGHTS), load_file(tmp_path / "selector" / _WEIGHTS)
    alone.selector.save(tmp_path / "alone")
    expected = load_file(tmp_path / "alone" / _WEIGHTS)
    assert max(float((expected[name] - before[name]).abs().max()) for name in expected) > 1e-2
    # AdamW divides a gradient by its size, so each of two steps changes a number by about lr, and rounding shows in
    # the smallest: a tenth of lr. Those of biases that change no softmax are nothing but rounding.
    for name, weights in expected.items():
        if not name.endswith(("key.bias", "classifier.bias")):
            torch.testing.assert_close(found[name], weights, rtol=0, atol=0.1 * small.optimizer.lr)


def test_what_one_worker_cannot_read_ends_the_run_of_both_with_that_error_and_after_a_checkpoint(
    lab: Path, tmp_path: Path
) -> None:
    questions = [json.loads(line) for line in (lab / "document-questions.jsonl").read_text().splitlines()][:16]
    longest = questions[-1]
    longest["question"] = " ".join(["Where was Anna born?"] * 1000)
    (tmp_path / "asked.jsonl").write_bytes(encode_jsonl(questions))
    extra = [f"questions.path={tmp_path}/asked.jsonl", "others=[]", "cluster.workers=2", "checkpoints.every=100"]

    def drawn(config: RetrieverTrainConfig) -> list[tuple[int, int]]:
        """The steps, and in each the worker, at which the long question comes up."""
        steps = enumerate(batches_of(read_asked(config), config))
        places = [(step, at, item.question) for step, batch in steps for at, item in enumerate(batch)]
        return [(step, at % 2) for step, at, asked in places if asked.question == longest["question"]]

    # Of the second worker, so that what the first one raises is not its own; and not in the first step.
    candidates = (settings(lab, tmp_path, *extra, f"seed={seed}") for seed in range(50))
    config, step = next(
        (config, drawn(config)[0][0]) for config in candidates if drawn(config)[:1] in ([(2, 1)], [(3, 1)])
    )
    with pytest.raises(PromptTooLong):
        train_retriever.run(config)
    (card,) = (tmp_path / "trained.training").rglob("checkpoint.json")
    assert json.loads(card.read_text())["state"]["step"] == step


def test_an_embedding_process_that_is_killed_is_an_error_of_the_refresh_and_the_state_is_kept(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training here and embedding in a process of Ray's, as beside a job's worker."""
    passages = f"{{encoder: {tmp_path}/encoder, corpus: {lab}/documents.jsonl, every: 2, part_passages: 7}}"
    config = settings(lab, tmp_path, f"passages={passages}", "checkpoints.every=100", "others=[]")
    kept: list[int] = []

    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class Kept(Silent):
        def checkpoint(self, checkpoint: TrainCheckpoint) -> None:
            kept.append(checkpoint.state.step)

    monkeypatch.setattr(refreshing, "_embedded", killed)
    with cluster(), refused(Interrupted, "refresh_failed", step=2) as raised:
        retriever_worker(config, Kept(), "cpu", refresher=RefresherBeside)
    cause = raised.value.__cause__
    assert isinstance(cause, TrainingError) and cause.code == "training.refresh_died"
    assert kept == [2]


def _fail(*_: object) -> None:
    raise RuntimeError("killed")
