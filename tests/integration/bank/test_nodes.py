"""Builds on a cluster of several nodes of this machine: more builds than it has room for, nodes that come and go."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from regrad.bank.verify import verify
from regrad.data.passages import encode_passages
from regrad.lab.files import held_out_corpus
from regrad.lab.world import World
from regrad.meta_init import random_meta_init
from regrad.models.config import ModelConfig
from regrad.models.loading import load_language_model
from regrad.settings import builtin_config, load_settings
from regrad.storage import Storage
from tests.integration.conftest import environment
from tests.tools.nodes import add_node, only_a_head, workers_of
from tests.tools.patience import Deadline, finish

PASSAGES, BLOCK = 96, 4


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with only_a_head() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, world: World) -> list[str]:
    """The build's settings but for the bank and the workers."""
    folder = tmp_path_factory.mktemp("inputs")
    lm = load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")
    random_meta_init(lm, 1.0).save(str(folder / "m"))
    (folder / "c.jsonl").write_bytes(encode_passages(held_out_corpus(world)[:PASSAGES]))
    return [f"meta_init={folder}/m", f"corpus={folder}/c.jsonl", f"bank.shard_passages={BLOCK}", "cluster.gpu=false"]


class Build:
    """A build in a process of its own on the cluster."""

    def __init__(self, nodes: Cluster, inputs: list[str], bank: Path, workers: int, seconds_a_block: float) -> None:
        self.bank = bank
        script = Path(__file__).parents[2] / "tools" / "slow_build.py"
        settings = [*inputs, f"bank.uri={bank}", f"cluster.workers={workers}"]
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(seconds_a_block), *settings],
            env=environment(RAY_ADDRESS=nodes.address, OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def blocks(self) -> int:
        """The blocks that are done, until all of them are committed."""
        return len(Storage(str(self.bank)).list("builds"))

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for something that happens while the build runs."""
        deadline = Deadline(90)
        while not done():
            assert self._process.poll() is None, self._process.communicate()[0]
            assert not deadline.over
            time.sleep(0.05)

    def finish(self) -> str:
        """Wait for the end, which is a good one; what was printed."""
        output, _ = finish(self._process, 120)
        assert self._process.returncode == 0, output
        return str(output)

    def content(self) -> dict[str, bytes]:
        """Every file of the bank."""
        storage = Storage(str(self.bank))
        assert verify(storage.uri) == []
        return {name: storage.read(name) for name in storage.files() if not name.endswith(".tmp")}


def test_builds_on_a_full_cluster_all_finish_and_one_without_room_says_so(
    nodes: Cluster, inputs: list[str], tmp_path: Path
) -> None:
    node = add_node(nodes, 2)
    together = [Build(nodes, inputs, tmp_path / name, 2, 0.4) for name in ("a", "b")]
    together[0].until(lambda: len(workers_of(node, "SlowActor")) == 2 and any(build.blocks for build in together))
    late = Build(nodes, inputs, tmp_path / "late", 2, 0.1)
    printed = [build.finish() for build in (*together, late)]
    assert "waiting for 1 CPU: of the cluster's 2, 2 are held by others" in printed[-1]
    assert together[0].content() == together[1].content() == late.content()
    nodes.remove_node(node)


def test_a_build_outlives_a_node_and_uses_one_that_comes(nodes: Cluster, inputs: list[str], tmp_path: Path) -> None:
    first = add_node(nodes, 1)
    undisturbed = Build(nodes, inputs, tmp_path / "undisturbed", 1, 0.0)
    undisturbed.finish()

    disturbed = Build(nodes, inputs, tmp_path / "disturbed", 2, 0.8)
    disturbed.until(lambda: disturbed.blocks >= 2)
    second = add_node(nodes, 1)
    disturbed.until(lambda: len(workers_of(second, "SlowActor")) == 1)
    before = disturbed.blocks
    disturbed.until(lambda: disturbed.blocks >= before + 4)
    nodes.remove_node(first, allow_graceful=False)
    assert disturbed.blocks < PASSAGES // BLOCK, "the node went in the middle"
    disturbed.finish()
    assert disturbed.content() == undisturbed.content()
    nodes.remove_node(second)
