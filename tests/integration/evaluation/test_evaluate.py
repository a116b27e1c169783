"""`regrad eval` as a user runs it, on the lab's base: killed in the middle, and a cell that fails in a worker.

The commands join a cluster in which all processors but one are taken. Of their two workers one never comes, and the
cell that it was given is not done: a run comes to its last cell and no further, however fast or slow the machine is.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import yaml
from ray.util import placement_group, remove_placement_group

from regrad.data.passages import Passage
from regrad.lab.world import World, passage
from regrad.meta_init import MetaInit, random_meta_init
from regrad.models.loading import LanguageModel
from regrad.settings import builtin_config
from tests.integration.conftest import BIN, environment
from tests.tools import patience
from tests.tools.commands import status_of
from tests.tools.evaluating import write_set

CELLS = 7


@pytest.fixture
def folder(tmp_path: Path, world: World) -> Path:
    rng = random.Random(5)
    people: list[Passage] = [passage(person, rng) for person in world.held_out[:60]]
    write_set(tmp_path, people, questions=60)
    return tmp_path


def write_config(folder: Path, **changes: object) -> Path:
    gold = {"source": "gold", "corpus": str(folder / "corpus.jsonl"), "distractors": "random"}
    settings = {
        "output": str(folder / "out"),
        "models": {"lab": str(builtin_config("models/lab.yaml"))},
        "sets": [{"name": "people", "path": str(folder / "questions.jsonl"), "passages": gold}],
        "methods": ["direct", "rag"],
        "k": [1, 3],
        "seeds": [0, 1, 2],
        "batch": {"rows": 8, "questions": 8},
        "cluster": {"workers": 2},
    }
    path = folder / "eval.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


@pytest.fixture
def one_processor(local_cluster: str) -> Iterator[Callable[[], None]]:
    """Takes all processors of the cluster but one; gives what frees them."""
    others = placement_group([{"CPU": 1}] * (int(ray.cluster_resources()["CPU"]) - 1))
    assert others.wait(patience.patient(60))
    yield lambda: remove_placement_group(others)
    remove_placement_group(others)


@pytest.fixture
def unfinished(one_processor: object, local_cluster: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that has done all its cells but one, and waits for a worker."""
    command = [sys.executable, str(BIN / "regrad"), "eval", "--config", str(write_config(folder))]
    process = subprocess.Popen(
        command,
        env=environment(RAY_ADDRESS=local_cluster),
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = patience.Deadline(300)
        while len(done(folder)) < CELLS - 1:
            assert process.poll() is None and not deadline.over, patience.finish(process, 10)
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def done(folder: Path) -> dict[str, int]:
    """The cells that are written, and when."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out" / "cells").glob("*.parquet")}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """`regrad eval` in this process; gives its exit status."""

    return lambda config: status_of(monkeypatch, "eval", "--config", str(config))


def test_a_run_killed_in_the_middle_goes_on_with_what_is_missing(
    folder: Path,
    unfinished: subprocess.Popen[str],
    one_processor: Callable[[], None],
    run: Callable[[Path], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.killpg(unfinished.pid, signal.SIGKILL)
    unfinished.wait()
    before = done(folder)
    assert len(before) == CELLS - 1
    one_processor()
    assert run(folder / "eval.yaml") == 0
    assert capsys.readouterr().out.startswith(f"1 cells run, {CELLS - 1} were done before; ")
    after = done(folder)
    assert len(after) == CELLS
    assert before.items() <= after.items()
    rows = json.loads((folder / "out" / "report.json").read_text())
    assert [(row["method"], row["k"], row["seeds"]) for row in rows] == [("direct", 0, 1), ("rag", 1, 3), ("rag", 3, 3)]
    assert run(folder / "eval.yaml") == 0
    assert f"{CELLS} were done before" in capsys.readouterr().out


def test_a_run_that_is_interrupted_says_what_is_kept_and_leaves_a_report(
    folder: Path, unfinished: subprocess.Popen[str]
) -> None:
    os.killpg(unfinished.pid, signal.SIGINT)
    _, stderr = patience.finish(unfinished, 60)
    assert unfinished.returncode == 130
    (line,) = [line for line in stderr.splitlines() if "cells are done and kept" in line]
    kept = f"{CELLS - 1} of {CELLS} cells are done and kept; the same command continues with the rest; report at "
    assert re.search(kept, line)
    assert f"1 of {CELLS} cells are not done yet" in (folder / "out" / "report.md").read_text()


def test_an_error_in_a_worker_is_one_sentence(
    folder: Path,
    lab_model: LanguageModel,
    local_cluster: str,
    run: Callable[[Path], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw = random_meta_init(lab_model, 1.0)
    other: MetaInit = replace(raw, base_identity="0" * 64)
    other.save(folder / "other")
    online = {"name": "online", "method": "regrad-online", "meta_init": str(folder / "other")}
    assert run(write_config(folder, methods=["direct", online], cluster={"workers": 1})) == 2
    stderr = capsys.readouterr().err
    (line,) = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert "the MetaInit belongs to base weights 0000000000000000" in line
    assert "Traceback" not in stderr
    assert len(list((folder / "out" / "cells").glob("*-direct-*.parquet"))) == 1
