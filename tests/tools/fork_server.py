"""Ray's workers without their imports: forked from a process that has torch and transformers in memory.

Each process of Ray is a new interpreter, in which those imports take some ten seconds of a slow processor, and the
integration tests start hundreds. Python imports `startup/sitecustomize.py` first, which PYTHONPATH has the Python of
every process do that a test starts: one that is to become a worker hands its command line, environment and streams to
this server instead, and the server's child goes on as that worker. What it then does is Ray's own. Nothing of Ray's is
in memory, as it reads the environment when it is imported; and if the server is not there, the worker starts as it
always does.

    python -m tests.tools.fork_server SOCKET MODULE...
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil
import pytest

from tests.tools.ray_settings import QUIET

PRELOADED = (
    "torch",
    "numpy",
    "safetensors.torch",
    "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "peft",
    "pandas",
    "pyarrow.parquet",
    "s3fs",
    "requests",
    "jsonschema",
    "fastapi",
    "uvicorn.config",
    "regrad.models.loading",
    "regrad.gradients.extractor",
    "regrad.inference.engine",
    "regrad.methods.registry",
    "regrad.bank.writer",
    "regrad.bank.reader",
)
SOCKET = "REGRAD_TEST_FORKS"
"""The variable that tells a worker where the server is."""
_MOST_BYTES = 1 << 20
_STARTUP = Path(__file__).with_name("startup")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fork:
    """A process of the server's: the Ray that asked for it, which is not its parent, and its environment."""

    pid: int
    raylet: int
    environment: dict[str, str]


@contextmanager
def forked_workers() -> Iterator[None]:
    """Inside the block, the workers of every Ray that this process and its children start are forked."""
    with fork_server(PRELOADED) as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in (variables | QUIET).items():
            patch.setenv(name, value)
        yield


@contextmanager
def fork_server(modules: Sequence[str]) -> Iterator[dict[str, str]]:
    """A server for the block: the variables with which a Ray's workers are forked from it."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/fork"
        command = [sys.executable, "-m", "tests.tools.fork_server", place, *modules]
        process = subprocess.Popen(command, cwd=_ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            while not Path(place).exists() and process.poll() is None:
                time.sleep(0.01)
            yield {SOCKET: place, "PYTHONPATH": joined(str(_STARTUP), os.environ.get("PYTHONPATH"))}
        finally:
            process.terminate()
            process.wait()


def joined(*paths: str | None) -> str:
    """A PYTHONPATH of those that there are."""
    return os.pathsep.join(path for path in paths if path)


def forks() -> list[Fork]:
    """Every process that has been forked from this process's server so far."""
    log = Path(os.environ.get(SOCKET, "/nowhere") + ".log")
    lines = log.read_text().splitlines() if log.exists() else []
    return [Fork(**json.loads(line)) for line in lines]


def family(pid: int) -> list[psutil.Process]:
    """What a running process has started, and what was forked for that: all of it runs."""
    found = {process.pid: process for process in psutil.Process(pid).children(recursive=True)}
    for fork in forks():
        if fork.raylet in found and psutil.pid_exists(fork.pid):
            with suppress(psutil.Error):
                found[fork.pid] = psutil.Process(fork.pid)
                found |= {child.pid: child for child in found[fork.pid].children(recursive=True)}
    return list(found.values())


def serve(place: str, modules: Sequence[str]) -> None:
    """Fork a child for every request, until SIGTERM. Those that come before the imports are done wait for it."""
    with socket.socket(socket.AF_UNIX) as server, open(place + ".log", "a", buffering=1) as log:
        server.bind(place + ".new")
        server.listen(64)
        os.rename(place + ".new", place)
        for name in modules:
            importlib.import_module(name)
        _freeze()
        while True:
            connection, _ = server.accept()
            if request := _forked(connection, log):
                server.close()
                log.close()
                _become(*request)
                return


def _freeze() -> None:
    """What is in memory is shared with every fork."""
    # A fork keeps one thread: what the others were holding would stay locked for good. (jemalloc starts its anew.)
    threads = [Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in os.listdir("/proc/self/task")]
    if others := set(threads[1:]) - {"jemalloc_bg_thd"}:
        sys.exit(f"an import has started threads: {sorted(others)}")
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _forked(connection: socket.socket, log: TextIO) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for the request. In the child this is what it asks for: its script, and its standard streams."""
    with connection:
        try:
            connection.settimeout(10)
            request, streams = _received(connection)
        except (OSError, ValueError):
            return None
        pid = os.fork()
        if pid:
            log.write(json.dumps(asdict(Fork(pid, request["parent"], request["environment"]))) + "\n")
            try:
                connection.sendall(str(pid).encode())
            except OSError:  # the client gave up, and runs the script itself
                os.kill(pid, signal.SIGKILL)
        for stream in streams if pid else ():
            os.close(stream)
    return None if pid else (request, streams)


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The request, and its standard streams."""
    data, streams, _, _ = socket.recv_fds(connection, _MOST_BYTES, 3)
    while not data.endswith(b"\n"):
        more = connection.recv(_MOST_BYTES)
        if not more or len(data) > _MOST_BYTES:
            raise ValueError("half a request")
        data += more
    return json.loads(data), streams


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Go on as the process that runs the request's script."""
    os.setsid()  # Ray ends a worker's whole group
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    script = request["arguments"][0]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    sys.path[:] = [str(Path(script).parent), *paths, *(path for path in sys.path[1:] if path not in paths)]
    sys.argv[:] = request["arguments"]
    _as_if_new()
    main = types.ModuleType("__main__")
    main.__file__ = script
    sys.modules["__main__"] = main
    exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)  # noqa: S102  # Ray's own default_worker.py


def _as_if_new() -> None:
    """What a library takes from the environment or from chance when it is imported."""
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    # Ray sets OMP_NUM_THREADS when it gives a worker its work, to the CPUs that this has: one, in the tests.
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
