"""Writing questions with Ray Data: the same bytes whatever the workers and however often it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_jobs import index_corpus, synthesize
from ray_jobs.corpus_blocks import decode_error
from regrad.data.jsonl import read_jsonl
from regrad.data.passages import encode_passages
from regrad.data.tasks import read_tasks
from regrad.errors import CorpusError, ModelError, RetrievalError, SynthesisError
from regrad.lab.files import documents
from regrad.lab.world import World
from regrad.retrieval.config import IndexConfig
from regrad.settings import builtin_config, load_settings
from regrad.storage import Storage
from regrad.training.synthesis.config import SynthesisConfig
from tests.integration.conftest import environment
from tests.tools.patience import Deadline, patient
from tests.tools.refusals import refused

pytestmark = pytest.mark.usefixtures("local_cluster")

PASSAGES, PARTS = 12, 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, world: World) -> str:
    path = tmp_path_factory.mktemp("c") / "documents.jsonl"
    path.write_bytes(encode_passages(documents(world.meta[:PASSAGES])))
    return str(path)


def overrides(model: str, corpus: str, output: str, workers: int = 2) -> list[str]:
    parts = ["candidates=10", f"part_passages={PASSAGES // PARTS}", "passages_per_task=4", f"cluster.workers={workers}"]
    return [f"model.path={model}", f"corpus={corpus}", f"output={output}", *parts]


def settings(*values: str) -> SynthesisConfig:
    return load_settings(SynthesisConfig, builtin_config("jobs/synth-lab.yaml"), values)


def kill_after_first_part(values: list[str], parts: Path, address: str) -> int:
    """Start the command, kill it as soon as a part is there; returns how many there are once all is quiet.

    It joins the cluster of this process, which ends the workers of a driver that is gone.
    """
    options = [part for value in values for part in ("--set", value)]
    command = [sys.executable, "-m", "regrad.cli.main", "synth", *options]
    joining = environment(RAY_ADDRESS=address)
    process = subprocess.Popen(command, env=joining, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = Deadline(120)
    while not (parts.exists() and any(parts.glob("*.jsonl"))):
        assert process.poll() is None
        assert not deadline.over
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(patient(10))
    time.sleep(3)  # its workers notice, and end
    return len(list(parts.glob("*.jsonl")))


def test_a_run_that_was_killed_goes_on_and_gives_the_bytes_of_an_uninterrupted_one(
    writer_path: str, corpus: str, tmp_path: Path, local_cluster: str, caplog: pytest.LogCaptureFixture
) -> None:
    values = overrides(writer_path, corpus, str(tmp_path / "killed"), workers=1)
    there = kill_after_first_part(values, tmp_path / ".killed.parts", local_cluster)
    assert 1 <= there < PARTS
    assert not (tmp_path / "killed").exists()
    with caplog.at_level("INFO"):
        line = synthesize.run(settings(*values))
    assert f"{PASSAGES} passages, {2 * there} of them by an earlier run" in caplog.text
    synthesize.run(settings(*overrides(writer_path, corpus, str(tmp_path / "whole"))))
    for name in ("tasks.jsonl", "rejected.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert line.startswith(
        f"tasks at {tmp_path}/killed: {len(read_tasks(str(tmp_path / 'whole/tasks.jsonl')))} tasks, "
    )
    # The command was typed on a cluster, so its run has a record beside the output.
    found = [path.name for path in sorted(tmp_path.iterdir())]
    assert found == ["killed", "killed.run.json", "whole"], "no parts are left"


def test_questions_find_their_passages_bad_lines_are_listed_and_outputs_may_be_remote(
    writer_path: str, corpus: str, tmp_path: Path, s3: str
) -> None:
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_bytes(b'not json\n\n{"id": "e", "text": " "}\n' + Path(corpus).read_bytes())
    index_corpus.run(IndexConfig(corpus=corpus, output=str(tmp_path / "index")))
    output = f"{s3}/synthetic"
    synthesize.run(settings(*overrides(writer_path, str(mixed), output), f"index={tmp_path}/index"))
    assert Storage(output).list() == ["rejected.jsonl", "report.json", "tasks.jsonl"]
    assert not Storage(f"{s3}/.synthetic.parts").list()
    report = json.loads(Storage(output).read("report.json"))
    assert report["passages"] == PASSAGES + 2
    reasons = [(record["id"], record["reason"]) for _, record in read_jsonl(f"{output}/rejected.jsonl")]
    assert reasons[:2] == [("not json", "not a passage"), ("e", "empty text")]
    assert "the question does not find its passage" in {reason for _, reason in reasons}
    assert report["kept"] == len({q.question for t in read_tasks(f"{output}/tasks.jsonl") for q in t.questions})


def test_what_cannot_be_done_is_one_sentence(corpus: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    with refused(ModelError, "not_found", path="/nowhere/model"):
        synthesize.run(settings(*overrides("/nowhere/model", corpus, output)))
    with refused(CorpusError, "not_found", uri=f"{corpus}.no"):
        synthesize.run(settings(*overrides("m", f"{corpus}.no", output)))
    with refused(RetrievalError, "not_found", uri=str(tmp_path)):
        synthesize.run(settings(*overrides("m", corpus, output), f"index={tmp_path}"))
    assert not Path(output).exists()


def test_too_little_memory_says_what_to_lower(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(synthesize, "load_language_model", fail)
    config = settings(*overrides("m", corpus, str(tmp_path / "out")))
    block = {"line": np.array([b"{}"]), "problem": np.array([""]), "read_bytes": np.array([2])}
    row = synthesize.PartWriter(config.model_dump(mode="json"))(block)
    with refused(SynthesisError, "out_of_memory", batch="16 passages with 10 candidates each"):
        raise decode_error(row["failure"][0])


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with refused(CorpusError, "empty"):
        synthesize.run(settings(*overrides("m", str(tmp_path / "empty.jsonl"), str(tmp_path / "out"))))


def test_a_model_that_writes_no_questions_is_an_error_that_shows_what_it_wrote(corpus: str, tmp_path: Path) -> None:
    """The lab's base learned to answer questions, not to ask them."""
    values = [*overrides("package:regrad.lab/base", corpus, str(tmp_path / "out")), "max_passages=4"]
    with refused(SynthesisError, "nothing_kept", candidates=40, passages=4):
        synthesize.run(settings(*values))
    rejected = [record for _, record in read_jsonl(str(tmp_path / "out" / "rejected.jsonl"))]
    assert len(rejected) == 40
    assert any(record["detail"] for record in rejected)
