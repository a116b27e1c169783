"""The server that Ray's workers are forked from in the integration tests: a script runs there as it would by itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.tools.fork_server import fork_server
from tests.tools.patience import Deadline

SCRIPT = """
import atexit, json, os, sys
import helper
atexit.register(lambda: open(sys.argv[1] + ".done", "w").close())
found = {"name": __name__, "arguments": sys.argv, "folder": os.getcwd(), "value": os.environ.get("VALUE"),
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


def told(command: list[str], script: Path, tmp_path: Path) -> tuple[dict[str, Any], str]:
    """What the script wrote into its file once it had ended, and what it printed."""
    result, printed = tmp_path / "result", tmp_path / "printed"
    with printed.open("w") as output:
        environment = {"PATH": os.environ["PATH"], "VALUE": "given"}
        line = [*command, str(script), str(result), "an argument"]
        subprocess.run(line, cwd=tmp_path, env=environment, stdout=output, check=False)
    deadline = Deadline(30)
    while not (tmp_path / "result.done").exists():
        assert not deadline.over, "the script has not ended"
    return json.loads(result.read_text()), printed.read_text()


def test_a_script_is_run_in_a_fork_as_by_itself(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "the server's")
    with fork_server(["wave"]) as command:
        deadline = Deadline(30)
        while not Path(command[-1]).exists():
            assert not deadline.over, "the server has not come up"
        found, printed = told(command, script, tmp_path)
        assert json.loads(printed) == found
        assert found.pop("pid") != os.getpid()
        assert found == {
            "name": "__main__",
            "arguments": [str(script), str(tmp_path / "result"), "an argument"],
            "folder": str(tmp_path),
            "value": "given",
            "other": None,
            "helper": "beside the script",
            "loaded": True,
        }


def test_without_a_server_it_runs_as_any_script(script: Path, tmp_path: Path) -> None:
    with fork_server(["wave"]) as command:
        pass
    found, _ = told(command, script, tmp_path)
    assert not found["loaded"]
    assert found["arguments"][1:] == [str(tmp_path / "result"), "an argument"]
