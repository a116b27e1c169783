"""A Ray cluster of several nodes of this machine, as an operator's: they come and go while jobs run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from ray.cluster_utils import Cluster


@contextmanager
def only_a_head() -> Iterator[Cluster]:
    """A head that takes no workers, as in `cluster.yaml`; a test adds other nodes. This process does not join it."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def workers_of(node: Any, name: str) -> list[psutil.Process]:
    """The processes on a node whose command has a name in it."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [child for child in raylet.children(recursive=True) if name in _command(child)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.Error:  # it has ended meanwhile
        return ""
