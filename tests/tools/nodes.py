"""A Ray cluster of several nodes of this machine, as an operator's: they come and go while jobs run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil
from ray.cluster_utils import Cluster

from tests.tools.patience import patient

T = TypeVar("T")
_TRIES = 2


@contextmanager
def only_a_head() -> Iterator[Cluster]:
    """A head that takes no workers, as in `cluster.yaml`; a test adds other nodes. This process does not join it."""
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = _tried(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Cluster, cpus: int) -> Any:
    """One node more, of so many CPUs (which are only a number)."""
    return _tried(lambda: cluster.add_node(num_cpus=cpus))


def _tried(start: Callable[[], T]) -> T:
    """Ray gives a node 30 seconds to start, which no setting changes and a busy machine can exceed."""
    for tries_left in reversed(range(round(patient(_TRIES)))):
        try:
            return start()
        except Exception:  # Ray raises a bare one
            if not tries_left:
                raise
    raise AssertionError


def workers_of(node: Any, name: str) -> list[psutil.Process]:
    """The processes on a node whose command has a name in it."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [child for child in raylet.children(recursive=True) if name in _command(child)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.Error:  # it has ended meanwhile
        return ""
