"""`regrad eval` as a user runs it, on the lab's base: killed in the middle, and a cell that fails in a worker."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from regrad.data.passages import Passage
from regrad.lab.world import World, passage
from regrad.meta_init import MetaInit, random_meta_init
from regrad.models.loading import LanguageModel
from regrad.settings import builtin_config
from tests.integration.conftest import BIN, environment
from tests.tools.evaluating import write_set
from tests.tools.patience import Deadline, patient


def command(config: Path, *options: str) -> list[str]:
    return [sys.executable, str(BIN / "regrad"), "eval", "--config", str(config), *options]


def run(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = command(config, *options)
    return subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=patient(400), check=False)


@pytest.fixture
def folder(tmp_path: Path, world: World) -> Path:
    rng = random.Random(5)
    people: list[Passage] = [passage(person, rng) for person in world.held_out[:60]]
    write_set(tmp_path, people, questions=60)
    return tmp_path


def write_config(folder: Path, **changes: object) -> Path:
    gold = {"source": "gold", "corpus": str(folder / "corpus.jsonl"), "fill": "random"}
    settings = {
        "output": str(folder / "out"),
        "models": {"lab": str(builtin_config("models/lab.yaml"))},
        "sets": [{"name": "people", "path": str(folder / "questions.jsonl"), "passages": gold}],
        "methods": ["direct", "rag"],
        "k": [1, 3],
        "seeds": [0, 1, 2],
        "batch": {"rows": 8, "questions": 8},
        "cluster": {"workers": 1},
    }
    path = folder / "eval.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def test_a_run_killed_in_the_middle_goes_on_with_what_is_missing(folder: Path) -> None:
    config, cells = write_config(folder), folder / "out" / "cells"
    process = subprocess.Popen(command(config), env=environment(), start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = Deadline(300)
    while not list(cells.glob("*.parquet")) and not deadline.over and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(patient(60))
    before = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.parquet")}
    assert 1 <= len(before) < 7
    result = run(config)
    assert result.returncode == 0, result.stderr
    ran, done = map(int, re.findall(r"(\d+) cells run, (\d+) were", result.stdout)[0])
    assert ran + done == 7
    assert len(before) <= done < 7  # a worker may finish its cell after its driver was killed
    after = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.parquet")}
    assert len(after) == 7
    assert before.items() <= after.items()
    rows = json.loads((folder / "out" / "report.json").read_text())
    assert [(row["method"], row["k"], row["seeds"]) for row in rows] == [("direct", 0, 1), ("rag", 1, 3), ("rag", 3, 3)]
    assert "7 were done before" in run(config).stdout


def test_a_run_that_is_interrupted_says_what_is_kept_and_leaves_a_report(folder: Path) -> None:
    config, out = write_config(folder), folder / "out"
    process = subprocess.Popen(
        command(config), env=environment(), start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    deadline = Deadline(300)
    while not list((out / "cells").glob("*.parquet")) and not deadline.over and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=patient(60))
    assert process.returncode == 130
    (line,) = [line for line in stderr.splitlines() if "cells are done and kept" in line]
    assert re.search(r"[1-6] of 7 cells are done and kept; the same command goes on with the rest; report at ", line)
    assert "cells are not done yet" in (out / "report.md").read_text()


def test_an_error_in_a_worker_is_one_sentence(folder: Path, lab_model: LanguageModel) -> None:
    raw = random_meta_init(lab_model, 1.0)
    other: MetaInit = replace(raw, base_identity="0" * 64)
    other.save(folder / "other")
    online = {"name": "online", "method": "regrad-online", "meta_init": str(folder / "other")}
    result = run(write_config(folder, methods=["direct", online]))
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "the MetaInit belongs to base weights 0000000000000000" in line
    assert "Traceback" not in result.stderr
    assert len(list((folder / "out" / "cells").glob("*-direct-*.parquet"))) == 1
