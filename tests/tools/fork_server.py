"""Ray's workers without their imports: forked from a process that has torch and transformers in memory.

Each process of Ray is a new interpreter, in which those imports take some ten seconds of a slow processor, and the
integration tests start hundreds. `py_executable` of Ray's runtime environment says what runs a worker: here
`forked_python.py`, which hands its command line, environment and streams to this server, and the server's child goes on
as that worker. What it then does is Ray's own. Nothing of Ray's is in memory, as it reads the environment when it is
imported; and if the server is not there, the worker starts as it always does.

    python -m tests.tools.fork_server SOCKET MODULE...
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

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
    "regrad.models.loading",
    "regrad.gradients.extractor",
    "regrad.inference.engine",
    "regrad.methods.registry",
    "regrad.bank.writer",
    "regrad.bank.reader",
)
FORKED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The variable in which a driver finds what its job's workers are run by."""
_MOST_BYTES = 1 << 20
_CLIENT = Path(__file__).with_name("forked_python.py")


@contextmanager
def forked_workers() -> Iterator[None]:
    """Inside the block, the workers of every Ray that this process and its children start are forked."""
    with fork_server(PRELOADED) as command, pytest.MonkeyPatch.context() as patch:
        environment = {"py_executable": shlex.join(command)}
        patch.setenv(FORKED, json.dumps({"runtime_env": environment}))
        yield


@contextmanager
def fork_server(modules: Sequence[str]) -> Iterator[list[str]]:
    """A server for the block: the command that runs a script in a fork of it. Until it is there, scripts do without."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/fork"
        command = [sys.executable, "-m", "tests.tools.fork_server", place, *modules]
        process = subprocess.Popen(command, cwd=_CLIENT.parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            yield [sys.executable, "-I", "-S", str(_CLIENT), place]
        finally:
            process.terminate()
            process.wait()


def serve(place: str, modules: Sequence[str]) -> None:
    """Fork a child for every request, until SIGTERM."""
    for name in modules:
        importlib.import_module(name)
    # A fork keeps one thread: what the others were holding would stay locked for good. (jemalloc starts its anew.)
    threads = [Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in os.listdir("/proc/self/task")]
    if others := set(threads[1:]) - {"jemalloc_bg_thd"}:
        sys.exit(f"an import has started threads: {sorted(others)}")
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place + ".new")
        server.listen(64)
        os.rename(place + ".new", place)
        while True:
            connection, _ = server.accept()
            if _is_child(connection):
                server.close()
                return


def _is_child(connection: socket.socket) -> bool:
    """Fork; the child runs the requested script to its end, and then this returns True in it."""
    with connection:
        try:
            connection.settimeout(10)
            request, streams = _received(connection)
        except (OSError, ValueError):
            return False
        pid = os.fork()
        if pid:
            try:
                connection.sendall(str(pid).encode())
            except OSError:  # the client gave up, and runs the script itself
                os.kill(pid, signal.SIGKILL)
        for stream in streams if pid else ():
            os.close(stream)
    if pid:
        return False
    _become(request, streams)
    return True


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
