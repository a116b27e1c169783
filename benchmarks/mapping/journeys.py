"""Which files do work on the way of a question, a passage, a training task and an evaluation cell.

The ways are walked by the program itself, as a user starts it, on the lab world with an untrained model: real Ray,
Lucene and HTTP, all processes together (see `probe/sitecustomize.py`). So nothing here names a module but `IN_PROCESS`.
A file that only says what a thing consists of (a dataclass, settings, constants) does no work and is not counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

PACKAGES = ("regrad", "ray_jobs", "serve_app")
NAMES = {
    "question": "a question, from HTTP to its answer (regrad serve, method regrad)",
    "passage": "a passage, from its line to a committed bank (regrad build)",
    "task": "a training task, from its file to a MetaInit (regrad train)",
    "task_in_process": "the same without a cluster",
    "cell": "an evaluation cell, from settings to the report (regrad eval)",
}

# What a reorganised tree may have to change: the one function that no verb of the command line calls.
IN_PROCESS = """
from regrad.settings import builtin_config, load_settings
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.meta.trainer import meta_train_in_process

meta_train_in_process(load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), ["optimizer.steps=1"]))
"""

DEPLOYMENTS = ("gateway", "retriever", "bank_loader", "generator")

_SECONDS = 600


def walk(root: Path) -> dict[str, list[str]]:
    """Files of the checkout at `root`, by journey."""
    with tempfile.TemporaryDirectory() as folder:
        walker = _Walker(root, Path(folder))
        walker.regrad("lab", "world", "--set", "task_records=20", "--set", "questions=20")
        _task(walker)
        walker.regrad("index")
        _passage(walker)
        _question(walker)
        _cell(walker)
        return walker.files()


def _task(walker: _Walker) -> None:
    with walker.on("task"):
        walker.regrad("train", "--set", "optimizer.steps=1", "--set", "cluster.workers=1")
    with walker.on("task_in_process"):
        walker.python(IN_PROCESS)


def _passage(walker: _Walker) -> None:
    with walker.on("passage"):
        walker.regrad("build", "--set", "cluster.workers=1")


def _question(walker: _Walker) -> None:
    """Of a server that is up: what it does at its start, and by itself meanwhile, is not the question's way."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    by_itself = ("follow_seconds", *(f"{name}.health_check_seconds" for name in DEPLOYMENTS))
    quiet = [part for name in by_itself for part in ("--set", f"{name}=3600")]
    with walker.running(("serve", "--set", f"http.port={port}", *quiet), until="serving "), walker.on("question"):
        body = {"question": "In which city does Ada Lovelace live?", "method": "regrad", "k": 3}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/answer", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            answer = json.load(response)
        time.sleep(1)  # for what is counted and logged once the answer is out
    assert len(answer["passages"]) == 3, answer
    assert not answer["degraded"], answer


def _cell(walker: _Walker) -> None:
    """The first question set of the lab's own settings, one method."""
    settings = yaml.safe_load((walker.root / "configs/jobs/eval-lab.yaml").read_text())
    method = next(item for item in settings["methods"] if isinstance(item, dict) and item["name"] == "regrad")
    cell = {
        "sets": [{**settings["sets"][0], "limit": 5}],
        "methods": [method],
        "k": [1],
        "seeds": [0],
        "compare_to": None,
        "cluster": {"workers": 1},
    }
    options = [part for key, value in cell.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    with walker.on("cell"):
        walker.regrad("eval", *options)


class _Walker:
    """Runs the project's program with probes in it, in a folder of its own."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self._folder = root, folder
        (folder / "journey").write_bytes(b"\0")
        (folder / "notes").touch()
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "probe"), str(root)]),
            "CODE_MAP_ROOT": str(root),
            "CODE_MAP_PACKAGES": ",".join(PACKAGES),
            "CODE_MAP_FOLDER": str(folder),
        }

    def regrad(self, *arguments: str) -> None:
        """Run a verb to its end."""
        self.python(self._program(), *arguments)

    def python(self, code: str, *arguments: str) -> None:
        """Run a piece of Python to its end; its output is shown if it fails."""
        command = [sys.executable, "-c", code, *arguments]
        made = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=_SECONDS
        )
        if made.returncode:
            raise SystemExit(f"{' '.join(arguments) or code} failed:\n{made.stdout}{made.stderr}")

    @contextlib.contextmanager
    def running(self, arguments: Sequence[str], until: str) -> Iterator[None]:
        """A verb that goes on until it is stopped; the block begins when it has said `until`."""
        command = [sys.executable, "-c", self._program(), *arguments]
        pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=self._folder, env=self._environment, start_new_session=True, **pipe)
        lines: list[str] = []
        threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True).start()
        try:
            _wait(lambda: process.poll() is not None or any(line.startswith(until) for line in lines))
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(arguments)} failed:\n{''.join(lines)}")
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(_SECONDS)

    @contextlib.contextmanager
    def on(self, journey: str) -> Iterator[None]:
        """What runs meanwhile, in any process, is on this journey."""
        self._mark(list(NAMES).index(journey) + 1)
        yield
        self._mark(0)

    def _mark(self, number: int) -> None:
        with (self._folder / "journey").open("r+b") as file:  # in place: the processes have mapped this file
            file.write(bytes([number]))

    def files(self) -> dict[str, list[str]]:
        """What was noted."""
        lines = [line.split(" ", 1) for line in (self._folder / "notes").read_text().splitlines()]
        names = list(NAMES)
        return {name: sorted({path for n, path in lines if names[int(n) - 1] == name}) for name in names}

    def _program(self) -> str:
        """What the command `regrad` does, as the checkout's pyproject.toml says it."""
        scripts = tomllib.loads((self.root / "pyproject.toml").read_text())["project"]["scripts"]
        module, function = scripts["regrad"].split(":")
        return f"import sys; from {module} import {function}; sys.exit({function}())"


def _wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit("the server did not come up")
        time.sleep(0.1)
