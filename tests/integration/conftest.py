"""One small demo, left serving, for all tests that ask over HTTP; one Ray cluster for all tests that submit jobs."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import psutil
import pytest

from tests.tools.fork_server import family, joined
from tests.tools.patience import Deadline, completed, patient

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.tools.visit import Visit

BIN = Path(sys.executable).parent

# A shell starts what is to run in the background deaf to Ctrl-C, and so would be every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.slow)
            _mark_needs(item)


def _mark_needs(item: pytest.Item) -> None:
    """What a test needs of the machine can be read from its fixtures."""
    fixtures = set(getattr(item, "fixturenames", ()))
    if fixtures & {"s3", "restart_s3"}:
        item.add_marker(pytest.mark.s3)
    if fixtures & {"browser", "visit"}:
        item.add_marker(pytest.mark.browser)


_GIVEN: set[int] = set()


def free_port() -> int:
    """Another each time: what listens on it may only start minutes later. So none of those that the system gives out
    itself, nor of those that Ray keeps for its workers (to 19,999) or this project for its proxy (to 25,999)."""
    while True:
        port = random.SystemRandom().randrange(26_000, 32_000)
        if port in _GIVEN:
            continue
        _GIVEN.add(port)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment(**extra: str) -> dict[str, str]:
    """This process's, with the virtual environment's programs first, and what is given on PYTHONPATH beside its own."""
    paths = joined(extra.pop("PYTHONPATH", None), os.environ.get("PYTHONPATH"))
    own = {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": paths}
    return {**os.environ, **own, **extra}


@pytest.fixture(scope="session", autouse=True)
def _forked(forked: None) -> None:
    """For all integration tests."""


@pytest.fixture(scope="session")
def local_cluster(s3: str) -> Iterator[str]:
    """The address of a Ray that every job of this process joins, started once since that and its end take seconds.

    Started after the S3 server, whose address and keys the workers inherit. A command in a process of its own starts
    its own Ray, unless it is given this address as RAY_ADDRESS.
    """
    import ray

    from ray_jobs import cluster as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TRIES", round(patient(module._TRIES)))  # each of them has 30 s of Ray's own
        with module.cluster():
            yield ray.get_runtime_context().gcs_address


def search(index: str, question: str, k: int = 3) -> list[str]:
    """Passage ids from an index."""
    from regrad.retrieval.base import open_retriever

    with open_retriever(index) as retriever:
        return [hit.passage.id for hit in retriever.search([question], k)[0]]


@dataclass
class RunningDemo:
    """A demo that has finished its questions and is still serving."""

    url: str
    folder: Path
    report: dict[str, Any]
    process: subprocess.Popen[str]
    output: list[str]

    @property
    def runs(self) -> Path:
        return self.folder / "runs" / "demo-quick"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDemo]:
    """`regrad demo --quick --keep`, run as a user runs it: real Ray, DeepSpeed, Lucene and HTTP."""
    folder, port = tmp_path_factory.mktemp("demo"), free_port()
    process = subprocess.Popen(
        [str(BIN / "regrad"), "demo", "--quick", "--keep", "--set", f"http.port={port}"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output: list[str] = []
    threading.Thread(target=lambda: output.extend(process.stdout or ()), daemon=True).start()
    try:
        _wait_for(lambda: any(line.startswith("serving at") for line in output), process, output, 480)
        report = json.loads((folder / "runs/demo-quick/report.json").read_text())
        yield RunningDemo(f"http://127.0.0.1:{port}", folder, report, process, output)
    finally:
        stop(process)


def stop(process: subprocess.Popen[str]) -> int:
    """Ctrl-C, and if that does not help, the whole process group is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(patient(60))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait(patient(10))


def kill_all(process: subprocess.Popen[str]) -> None:
    """A driver and everything that it started, at once; nothing of it runs any more when this returns."""
    everything = family(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    for one in everything:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    while any(_runs(one) for one in everything):
        time.sleep(0.02)
    process.communicate()


def _runs(process: psutil.Process) -> bool:
    """A container may have nobody who buries the dead."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_for(done: Any, process: subprocess.Popen[str], output: list[str], seconds: float) -> None:
    deadline = Deadline(seconds)
    while not done():
        if process.poll() is not None or deadline.over:
            pytest.fail("the demo did not come up:\n" + "".join(output[-40:]), pytrace=False)
        time.sleep(0.2)


@dataclass
class RayCluster:
    """A cluster started with `ray start --head`, as an operator would."""

    dashboard: str
    address: str


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    port, dashboard = free_port(), free_port()
    command = [
        *("ray", "start", "--head", "--num-cpus=2", f"--port={port}", f"--dashboard-port={dashboard}"),
        *("--ray-client-server-port", str(free_port()), "--disable-usage-stats", "--block"),
        *("--dashboard-agent-listen-port", str(free_port()), "--dashboard-agent-grpc-port", str(free_port())),
        *("--metrics-export-port", str(free_port()), "--temp-dir", str(tmp_path_factory.mktemp("ray"))),
    ]
    log = tmp_path_factory.mktemp("log") / "ray.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment(), stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{dashboard}"
        _wait_for_http(f"{url}/api/version", process, log)
        yield RayCluster(url, f"127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(patient(60))


def _wait_for_http(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    import requests

    deadline = Deadline(seconds)
    while not deadline.over and process.poll() is None:
        try:
            if requests.get(url, timeout=patient(2)).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    pytest.fail(f"nothing answers at {url}:\n{log.read_text()[-3000:]}", pytrace=False)


@pytest.fixture(scope="session")
def s3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the S3 server keeps its settings and process numbers."""
    return tmp_path_factory.mktemp("s3")


@pytest.fixture(scope="session")
def s3(s3_folder: Path) -> Iterator[str]:
    """An empty bucket (`s3://bucket`) on a real S3 server, or on moto where that cannot be installed."""
    folder = s3_folder
    script = str(Path(__file__).parents[1] / "tools" / "s3_server.sh")
    started = completed([script, "start", str(folder)], 500)
    patch = pytest.MonkeyPatch()
    if started.returncode == 0:
        settings = dict(line.split("=", 1) for line in (folder / "env.sh").read_text().split())
        finish = lambda: completed([script, "stop", str(folder)], 60)  # noqa: E731
    else:
        settings, finish = _moto(started.returncode)
    try:
        for name, value in settings.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("regrad-test")
        yield "s3://regrad-test"
    finally:
        patch.undo()
        finish()


@pytest.fixture
def restart_s3(s3: str, s3_folder: Path) -> Callable[[Callable[[], None]], None]:
    """Kills the S3 gateway with SIGKILL, does what it is given, and starts the gateway anew."""
    pids = s3_folder / "pids"
    if not pids.exists():
        pytest.skip("the S3 server is moto, which keeps its objects in this process")

    def restart(meanwhile: Callable[[], None]) -> None:
        os.kill(int(pids.read_text().split()[-1]), signal.SIGKILL)
        try:
            meanwhile()
        finally:
            command = ["radosgw", "-f", "-n", "client.rgw"]
            gateway = {**os.environ, "CEPH_CONF": str(s3_folder / "ceph.conf")}
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(command, env=gateway, stdout=quiet, stderr=quiet, start_new_session=True)
            with pids.open("a") as file:
                file.write(f"{process.pid}\n")
            port = int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
            _wait_for_port(port)

    return restart


def _wait_for_port(port: int, seconds: float = 60) -> None:
    deadline = Deadline(seconds)
    while not deadline.over:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail(f"nothing listens at port {port}", pytrace=False)


def _moto(status: int) -> tuple[dict[str, str], Any]:
    if status != 3:
        pytest.fail(f"the S3 server did not start (status {status})", pytrace=False)
    from moto.server import ThreadedMotoServer

    print("\nno real S3 server can be installed here: the S3 tests run against moto")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port())
    server.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server._port}",
        "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": "testsecret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return settings, server.stop


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real Chromium. (Not for the whole session: while it runs, this thread has an event loop of Playwright's.)"""
    from tests.tools.browser import NoBrowser, chromium

    try:
        with chromium() as running:
            yield running
    except NoBrowser as error:
        pytest.skip(str(error))


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A page of ordinary size and a server of its own."""
    from tests.tools.visit import open_visit

    with open_visit(browser, viewport={"width": 1280, "height": 900}) as opened:
        yield opened
