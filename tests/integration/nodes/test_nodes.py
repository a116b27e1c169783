"""Builds and training on nodes that come and go, each a raylet of its own: the result is the same, to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from regrad.bank.maintenance import gc
from regrad.bank.verify import verify
from regrad.data.passages import encode_passages
from regrad.lab.config import LabConfig
from regrad.lab.files import held_out_corpus, write_lab
from regrad.lab.world import World
from regrad.meta_init import MetaInit, random_meta_init
from regrad.models.config import ModelConfig
from regrad.models.loading import load_language_model
from regrad.settings import builtin_config, load_settings
from regrad.storage import Storage
from tests.integration.conftest import environment
from tests.tools.nodes import Nodes, nodes, wait_for
from tests.tools.partition import machine
from tests.tools.patience import finish

PASSAGES, BLOCK = 72, 6
STEPS, EVERY = 16, 4
_SOON = {"health_check_period_ms": 1000, "health_check_timeout_ms": 3000, "health_check_failure_threshold": 3}
"""A node that does not answer counts as lost after some 10 s; by Ray's defaults after about 40."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes() as found:
        yield found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, world: World) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    lm = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
    random_meta_init(lm, 1.0).save(str(folder / "m"))
    (folder / "c.jsonl").write_bytes(encode_passages(held_out_corpus(world)[:PASSAGES]))
    return folder


class Build:
    """A build with two workers by a driver on the head; held, if that is said."""

    def __init__(self, cluster: Nodes, inputs: Path, bank: Path, held: bool = False) -> None:
        self.bank = bank
        self._hold, self._begun = Path(f"{bank}.hold"), Path(f"{bank}.begun")
        self._begun.mkdir()
        if held:
            self._hold.touch()
        settings = Path(f"{bank}.json")
        settings.write_text(
            json.dumps(
                {
                    **{"meta_init": f"{inputs}/m", "corpus": f"{inputs}/c.jsonl", "cluster": {"workers": 2}},
                    "bank": {"uri": str(bank), "shard_passages": BLOCK},
                }
            )
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.tools.held_build", str(settings)],
            env=environment(RAY_ADDRESS=cluster.address),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def begun(self) -> list[str]:
        """The node of each block that was begun."""
        assert self._process.poll() is None, self._process.communicate()
        return [path.name.partition("-")[0] for path in self._begun.iterdir()]

    def let_go(self) -> None:
        self._hold.unlink()

    def nodes(self) -> dict[str, int]:
        """Wait until it is done; how many passages each node has computed, by the beginning of its id."""
        output, self.log = finish(self._process, 200)
        assert self._process.returncode == 0, self.log
        return {name.rpartition("/")[2]: count for name, count in json.loads(output.splitlines()[-1]).items()}

    def error(self) -> str:
        """Wait until it is refused; its last line."""
        _, log = finish(self._process, 200)
        assert self._process.returncode != 0
        return str(log.splitlines()[-1])

    def content(self) -> dict[str, bytes]:
        storage = Storage(str(self.bank))
        return {name: storage.read(name) for name in storage.files() if not name.endswith(".tmp")}


@pytest.fixture(scope="module")
def undisturbed(cluster: Nodes, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    cluster.empty()
    cluster.add()
    build = Build(cluster, inputs, tmp_path_factory.mktemp("undisturbed") / "bank")
    assert list(build.nodes().values()) == [PASSAGES]
    return build.content()


def test_a_node_that_comes_gets_work_and_one_that_goes_costs_nothing_but_its_blocks(
    cluster: Nodes, inputs: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.empty()
    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "a100_spot")  # as autoscalers set it for the `ray start` of a machine
    first = cluster.add()
    build = Build(cluster, inputs, tmp_path / "bank", held=True)
    wait_for(build.begun)
    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "a100")
    second = cluster.add()
    wait_for(lambda: set(build.begun()) == {first.node_id, second.node_id})
    cluster.kill(first)
    build.let_go()
    assert build.nodes() == {second.node_id[:6]: PASSAGES}, "what was at work on the other was done again here"
    assert f"/{second.node_id[:6]} has come" in build.log
    assert build.content() == undisturbed
    assert verify(str(build.bank)) == []
    hours = json.loads(Path(f"{build.bank}.run.json").read_text())["node_hours"]
    assert set(hours) == {"a100_spot", "a100", "machine"}, "the head has no kind"
    assert 0 < hours["a100_spot"] < hours["machine"] and 0 < hours["a100"] < hours["machine"]


def test_two_builds_at_once_on_a_full_cluster_both_finish(
    cluster: Nodes, inputs: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    cluster.empty()
    cluster.add()
    first = Build(cluster, inputs, tmp_path / "first", held=True)
    wait_for(first.begun)
    second = Build(cluster, inputs, tmp_path / "second")
    cluster.add()
    first.let_go()
    first.nodes()
    second.nodes()
    assert first.content() == second.content() == undisturbed


def test_a_node_with_another_version_is_told_before_the_work_and_one_that_comes_later_in_the_log(
    cluster: Nodes, inputs: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "other" / "transformers-0.0.1.dist-info").mkdir(parents=True)
    metadata = "Metadata-Version: 2.1\nName: transformers\nVersion: 0.0.1\n"
    (tmp_path / "other" / "transformers-0.0.1.dist-info" / "METADATA").write_text(metadata)
    other = os.pathsep.join([f"{tmp_path}/other", *filter(None, [os.environ.get("PYTHONPATH")])])
    cluster.empty()
    cluster.add()
    first = Build(cluster, inputs, tmp_path / "first", held=True)
    wait_for(first.begun)
    skewed = cluster.add(PYTHONPATH=other)
    second = Build(cluster, inputs, tmp_path / "second")
    error = second.error()
    assert f"/{skewed.node_id[:6]} has transformers 0.0.1" in error and "ClusterError" in error
    assert not list(Path(f"{tmp_path}/second.begun").iterdir())
    first.let_go()
    first.nodes()
    assert f"/{skewed.node_id[:6]} has transformers 0.0.1" in first.log
    assert first.content() == undisturbed


def test_a_build_goes_on_without_a_node_that_the_network_has_cut_off_and_that_writes_on(
    inputs: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with machine() as other:
        if other is None:
            pytest.skip("needs `ip` and the right to make network namespaces")
        with nodes(node_ip_address=other.ours, _system_config=_SOON) as cluster:
            here = cluster.add()
            other.start_node(cluster.address, cpus=1)
            wait_for(lambda: cluster.at(other.address))
            build = Build(cluster, inputs, tmp_path / "bank", held=True)
            wait_for(lambda: len(set(build.begun())) == 2, 150)  # beside other tests each takes long to start
            other.cut()
            build.let_go()  # there, too: what it computes nobody hears of, and it lies in the bank's folder
            assert set(build.nodes()) == {here.node_id[:6]}, "a block that the other wrote meanwhile is taken as it is"
            assert verify(str(build.bank)) == []
            other.mend()
            wait_for(lambda: not other.running())  # it learns that it counts as dead, and ends
            gc(str(build.bank), abandon=True)  # it may have noted a block when the build was over
            assert build.content() == undisturbed
            assert verify(str(build.bank)) == []


class Training:
    """Meta-training with two workers by a driver on the head."""

    def __init__(self, cluster: Nodes, lab: Path, folder: Path) -> None:
        self._folder = folder
        values = [f"tasks={lab}/tasks.jsonl", "dev=null", f"output={folder}/m", f"optimizer.steps={STEPS}"]
        values += ["strategy.name=graph", f"checkpoints.every={EVERY}", "watch.every=1"]
        config = str(builtin_config("jobs/train-lab.yaml"))
        options = [part for value in values for part in ("--set", value)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.meta_train", "--config", config, *options],
            env=environment(RAY_ADDRESS=cluster.address),
            stdout=(folder / "log").open("wb"),
            stderr=subprocess.STDOUT,
        )

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def checkpoint(self) -> int:
        """The step of the last complete checkpoint."""
        assert self._process.poll() is None, self.log
        listed = self._folder / "m.training" / "checkpoints" / "checkpoint_manager_snapshot.json"
        found = json.loads(listed.read_text())["latest_checkpoint_result"] if listed.exists() else None
        return int(found["metrics"]["step"]) if found else 0

    def result(self) -> MetaInit:
        finish(self._process, 300)
        assert self._process.returncode == 0, self.log
        return MetaInit.load(self._folder / "m")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_lab(LabConfig(output=str(folder), task_records=12, people_per_record=3))
    return folder


def test_training_whose_node_goes_resumes_where_there_is_room_with_the_same_result(
    cluster: Nodes, lab: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cluster.empty()
    left, goes = cluster.add(), cluster.add()
    undisturbed = Training(cluster, lab, tmp_path_factory.mktemp("undisturbed")).result()
    training = Training(cluster, lab, tmp_path)
    wait_for(lambda: training.checkpoint() >= EVERY, 200)
    assert cluster.workers(left, "TrainWorker")
    assert cluster.workers(goes, "TrainWorker")
    cluster.kill(goes)
    wait_for(lambda: "waiting for 2 CPU, of which the cluster has 1" in training.log, 100)
    cluster.add()
    found = training.result()
    assert found.notes["losses"] == undisturbed.notes["losses"]
    assert found.fingerprint == undisturbed.fingerprint
    assert "a worker was lost" in training.log
    assert f"/{goes.node_id[:6]} is gone" in training.log
    assert "has come" in training.log
    assert "raylet" not in training.log, "Ray's own lines are in its files"
