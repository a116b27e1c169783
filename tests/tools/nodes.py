"""A cluster of nodes that come and go, all on this machine: a head without CPUs, and raylets with one CPU each."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psutil
from ray.cluster_utils import Cluster

from tests.tools.patience import Deadline

T = TypeVar("T")


class Nodes:
    """The nodes beside the head, where drivers run: with their `address` as RAY_ADDRESS they join."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.address = str(cluster.address)

    def add(self, cpus: int = 1, **environment: str) -> Any:
        """A node that has joined; its processes have these variables, too."""
        return started(lambda: self._cluster.add_node(num_cpus=cpus, env_vars=environment))

    def at(self, address: str) -> bool:
        """Whether a node of this address is alive."""
        table = self._cluster.global_state.node_table()
        return any(node["NodeManagerAddress"] == address and node["Alive"] for node in table)

    def workers(self, node: Any, title: str) -> list[int]:
        """The processes of the actors on a node whose class has `title` in its name."""
        actors = self._cluster.global_state.actor_table(None, None, "ALIVE").values()
        here = [actor for actor in actors if actor["Address"]["NodeID"] == node.node_id]
        return [actor["Pid"] for actor in here if title in actor["ActorClassName"]]

    def kill(self, node: Any) -> None:
        """As a machine goes that loses its power: raylet and workers at once, and nobody is told."""
        processes = self.workers(node, "")
        for process in [info.process.pid for infos in node.all_processes.values() for info in infos] + processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def empty(self) -> None:
        """Take every node away."""
        for node in list(self._cluster.worker_nodes):
            self.kill(node)


@contextmanager
def nodes(**options: Any) -> Iterator[Nodes]:
    """The head alone, at first; `options` of Ray's for it."""
    head = {"num_cpus": 0, "include_dashboard": False, **options}
    cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        yield Nodes(cluster)
    finally:
        cluster.shutdown()


def started(start: Callable[[], T]) -> T:
    """What it starts: Ray gives its processes 30 seconds, which no setting changes and a busy machine can exceed."""
    here = psutil.Process()
    before = set(here.children())
    deadline = Deadline(90)
    while True:
        try:
            return start()
        except Exception:  # Ray raises a bare one
            for left in set(here.children()) - before:  # not theirs: of the fork server's, some are workers of others
                with suppress(psutil.Error):
                    left.kill()
            if deadline.over:
                raise


def wait_for(done: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until it is so."""
    deadline = Deadline(seconds)
    while not done():
        assert not deadline.over
        time.sleep(0.05)
