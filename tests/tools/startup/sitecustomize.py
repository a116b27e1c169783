"""Python imports this before anything else, where it is on PYTHONPATH: a worker of Ray is forked (see `fork_server`).

Ray starts a worker as `python setup_worker.py default_worker.py ARGUMENTS... --serialized-runtime-env-context=JSON`,
which sets the variables of the runtime environment and goes on as `default_worker.py`. Here the server at the socket
that REGRAD_TEST_FORKS names is asked to do the same in a fork of itself, and this process ends. Without a server, or
with a runtime environment that wants more than variables, Python goes on as ever.
"""

import gc
import os
import sys
from contextlib import suppress

gc.set_threshold(100_000, 50, 100)  # a tenth of what imports take is a search for garbage that is not there

_CONTEXT = "--serialized-runtime-env-context="


def _fork(place: str) -> None:
    """Have a fork go on in place of this process; returns if that was not to be."""
    import json
    import socket

    context = next((word for word in sys.argv if word.startswith(_CONTEXT)), None)
    wanted = json.loads(context[len(_CONTEXT) :]) if context else {}
    others = ("command_prefix", "override_worker_entrypoint", "java_jars")
    if wanted.get("py_executable") not in (None, sys.executable) or any(wanted.get(name) for name in others):
        return
    environment = dict(os.environ)
    for name, value in (wanted.get("env_vars") or {}).items():
        environment[name] = os.path.expandvars(value)
    arguments = [word for word in sys.argv[1:] if not word.startswith((_CONTEXT, "--language"))]
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": environment, "parent": os.getppid()}
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(60)
        server.connect(place)
        socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        if server.recv(32):
            os._exit(0)


if (_place := os.environ.get("REGRAD_TEST_FORKS")) and sys.argv[0].endswith("/_private/workers/setup_worker.py"):
    with suppress(OSError, ValueError):  # no server, or not in time
        _fork(_place)
