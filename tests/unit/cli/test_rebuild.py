"""`regrad rebuild`: its exit statuses, its plan and its status, without running any step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from regrad.cli.main import regrad
from regrad.cli.rebuild import job
from regrad.errors import NotPromoted
from regrad.lab.config import LabConfig
from regrad.lab.files import write_lab
from regrad.rebuild.flow import rebuild
from tests.tools.rebuilding import cheap_rebuild


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lab's files where the example's settings look for them."""
    monkeypatch.chdir(tmp_path)
    write_lab(LabConfig(output="runs/lab", questions=4, task_records=4))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(regrad, ["rebuild", *arguments])


@pytest.mark.parametrize(("refused", "status"), [(0, 0), (2, 3)])
def test_the_status_says_whether_passages_could_not_be_used(
    monkeypatch: pytest.MonkeyPatch, refused: int, status: int
) -> None:
    monkeypatch.setattr(job, "rebuild_of", lambda *_: ("version 0001 is current", refused))
    result = run()
    assert (result.exit_code, result.stdout) == (status, "version 0001 is current\n")


def test_a_version_that_is_kept_aside_has_a_status_of_its_own_and_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept_aside(*_: Any) -> None:
        raise NotPromoted("version 0002 is kept aside: 0.1 against 0.2", code="score_fell")

    monkeypatch.setattr(job, "rebuild_of", kept_aside)
    result = run()
    assert result.exit_code == 4
    assert result.stderr == "error: version 0002 is kept aside: 0.1 against 0.2 [rebuild.not_promoted.score_fell]\n"


def test_the_plan_of_the_example_counts_its_work_and_writes_nothing(lab: Path) -> None:
    result = run("--dry-run", "--json", "--set", "rates.train=2")
    assert result.exit_code == 0, result.output
    steps = {one["step"]: one for one in json.loads(result.stdout)["steps"]}
    assert {name: one["count"] for name, one in steps.items()} == {
        "train": 600,
        "index": 400,
        "build": 400,
        "verify": 400,
        "eval": 8,
    }
    assert steps["train"]["seconds"] == 150  # two workers
    assert steps["index"]["seconds"] is None
    assert not (lab / "runs/lab/rebuild").exists()


def test_status_shows_versions_and_runs(tmp_path: Path) -> None:
    assert "no version is current yet" in run("status", "--set", f"output={tmp_path}").stdout
    rebuild(cheap_rebuild(str(tmp_path)), lambda _: None)
    shown = run("status", "--set", f"output={tmp_path}").stdout
    assert "bank is made" in shown
    assert "7 passages, bank 1" in shown
    found = json.loads(run("status", "--json", "--set", f"output={tmp_path}").stdout)
    assert found["current"]["version"] == found["versions"][0]["id"]


def test_options_go_behind_the_verb() -> None:
    result = run("--set", "output=a", "status")
    assert result.exit_code != 0
    assert "after the verb" in result.output
