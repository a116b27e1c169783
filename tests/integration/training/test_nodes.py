"""Training on a cluster one of whose nodes goes, with all its workers."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from regrad.lab.config import LabConfig
from regrad.lab.files import write_lab
from regrad.meta_init import MetaInit
from tests.integration.conftest import BIN, environment
from tests.tools.nodes import add_node, only_a_head, workers_of
from tests.tools.patience import Deadline, finish

STEPS, EVERY = 36, 3


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with only_a_head() as cluster:
        yield cluster


def start(nodes: Cluster, lab: Path, output: Path) -> subprocess.Popen[str]:
    values = [f"tasks={lab}/tasks.jsonl", "dev=null", f"output={output}", f"optimizer.steps={STEPS}"]
    values += ["strategy.name=graph", f"checkpoints.every={EVERY}", "watch.every=6", "cluster.gpu=false"]
    return subprocess.Popen(
        [str(BIN / "regrad"), "train", *(part for value in values for part in ("--set", value))],
        env=environment(RAY_ADDRESS=nodes.address, OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    output, _ = finish(process, 200)
    assert process.returncode == 0, output
    return str(output)


def reached(output: Path) -> int:
    """The step of the last complete checkpoint."""
    listed = Path(f"{output}.training") / "checkpoints" / "checkpoint_manager_snapshot.json"
    found = json.loads(listed.read_text())["latest_checkpoint_result"] if listed.exists() else None
    return int(found["metrics"]["step"]) if found else 0


def test_a_run_whose_node_goes_ends_on_another_with_the_same_result(nodes: Cluster, tmp_path: Path) -> None:
    write_lab(LabConfig(output=str(tmp_path), task_records=12, people_per_record=3))
    both = [add_node(nodes, 2), add_node(nodes, 2)]
    ended(start(nodes, tmp_path, tmp_path / "undisturbed"))

    run, deadline = start(nodes, tmp_path, tmp_path / "disturbed"), Deadline(150)
    while reached(tmp_path / "disturbed") < 2 * EVERY:
        assert run.poll() is None, run.communicate()[0]
        assert not deadline.over
        time.sleep(0.05)
    busy = max(both, key=lambda node: len(workers_of(node, "TrainWorker")))
    nodes.remove_node(busy, allow_graceful=False)
    assert reached(tmp_path / "disturbed") < STEPS, "the node went in the middle"
    assert "a worker was lost" in ended(run)
    found, expected = MetaInit.load(tmp_path / "disturbed"), MetaInit.load(tmp_path / "undisturbed")
    assert found.notes["losses"] == expected.notes["losses"]
    assert found.fingerprint == expected.fingerprint
