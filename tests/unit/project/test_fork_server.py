"""The server that Ray's workers are forked from in the integration tests: a script runs there as it would by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray._private.workers import setup_worker

from tests.tools.fork_server import SOCKET, family, fork_server, forks
from tests.tools.patience import Deadline

SCRIPT = """
import atexit, json, os, sys
import helper
atexit.register(lambda: open(sys.argv[1] + ".done", "w").close())
found = {"name": __name__, "arguments": sys.argv, "folder": os.getcwd(), "value": os.environ.get("VALUE"),
         "set": os.environ.get("SET"),
         "other": os.environ.get("OTHER"), "helper": helper.NAME, "loaded": "wave" in sys.modules, "pid": os.getpid()}
print(json.dumps(found))
sys.stdout.flush()
open(sys.argv[1], "w").write(json.dumps(found))
sys.exit(3)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "scripts" / "script.py"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    path.with_name("helper.py").write_text("NAME = 'beside the script'\n")
    return path


def told(variables: dict[str, str], script: Path, tmp_path: Path, **context: Any) -> tuple[dict[str, Any], str]:
    """What the script wrote into its file once it had ended, and what it printed: started as Ray starts a worker."""
    result, printed = tmp_path / "result", tmp_path / "printed"
    environment = {"PATH": os.environ["PATH"], "VALUE": "given", **variables}
    line = [sys.executable, setup_worker.__file__, str(script), str(result), "an argument"]
    line += [f"--serialized-runtime-env-context={json.dumps(context)}", "--language=PYTHON"]
    with printed.open("w") as output:
        subprocess.run(line, cwd=tmp_path, env=environment, stdout=output, check=False)
    deadline = Deadline(30)
    while not (tmp_path / "result.done").exists():
        assert not deadline.over, "the script has not ended"
    return json.loads(result.read_text()), printed.read_text()


def test_a_script_is_run_in_a_fork_as_by_itself(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "the server's")
    with fork_server(["wave"]) as variables:
        monkeypatch.setenv(SOCKET, variables[SOCKET])
        found, printed = told(variables, script, tmp_path, env_vars={"SET": "${VALUE} twice"})
        assert json.loads(printed) == found
        (fork,) = forks()
        assert (fork.pid, fork.raylet) == (found.pop("pid"), os.getpid())
        assert fork.environment["VALUE"] == "given"
    assert found == {
        "name": "__main__",
        "arguments": [str(script), str(tmp_path / "result"), "an argument"],
        "folder": str(tmp_path),
        "value": "given",
        "set": "given twice",
        "other": None,
        "helper": "beside the script",
        "loaded": True,
    }


def test_what_was_forked_for_a_process_is_of_its_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its parent is the server."""
    (sleeper := tmp_path / "sleeper.py").write_text("import time\nprint('runs', flush=True)\ntime.sleep(600)\n")
    with fork_server([]) as variables:
        monkeypatch.setenv(SOCKET, variables[SOCKET])
        line = f"{sys.executable} {setup_worker.__file__} {sleeper} --language=PYTHON; read -r end"
        raylet = ["bash", "-c", line]
        environment = {**os.environ, **variables}
        with subprocess.Popen(raylet, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"runs\n"
            (fork,) = forks()
            (member,) = [member for member in family(os.getpid()) if member.pid == fork.pid]
            assert fork.raylet == process.pid
            member.kill()
            member.wait()
            assert fork.pid not in {member.pid for member in family(os.getpid())}
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("context", [{}, {"py_executable": "/usr/bin/env python3"}, {"command_prefix": ["true", "&&"]}])
def test_without_a_server_or_with_a_wish_it_has_not_heard_of_it_runs_as_any_script(
    script: Path, tmp_path: Path, context: dict[str, Any]
) -> None:
    with fork_server(["wave"]) as variables:
        found = told(variables, script, tmp_path, **context)[0] if context else None
    found = found or told(variables, script, tmp_path)[0]
    assert not found["loaded"]
    assert found["arguments"][1:] == [str(tmp_path / "result"), "an argument"]
