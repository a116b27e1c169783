"""A Ray cluster on this machine: a head, and nodes that are each a raylet of their own with CPUs that are numbers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster

from ray_jobs.cluster import prepare_serve_proxy

_ADDRESS = "RAY_ADDRESS"


@contextmanager
def simulated(
    nodes: int, cpus: int = 1, resources: Mapping[str, float] | None = None, head_cpus: int = 0
) -> Iterator[Cluster]:
    """A cluster with so many nodes beside the head, that this process has joined and that its jobs take for any other.

    As in `cluster.yaml` the head has no CPUs, so workers do not run there.
    """
    prepare_serve_proxy()
    head = {"num_cpus": head_cpus, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=cpus, resources=dict(resources or {}))
        os.environ[_ADDRESS] = str(cluster.address)
        ray.init(address=cluster.address, logging_level=logging.WARNING, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        os.environ.pop(_ADDRESS, None)
        cluster.shutdown()
