"""What a run says about the time that is left, by the test's clock."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_jobs.progress import progress_bar
from regrad.data.passages import Passage
from regrad.evaluation.output import TimeLeft
from regrad.evaluation.plan import PlannedCell, make_plan
from regrad.models.config import ModelConfig
from tests.tools.evaluating import settings, write_set

COSTS = {"direct": 1.0, "rag": 3.0, "tta": 90.0}
"""Seconds a question."""


@pytest.fixture
def cells(tmp_path: Path, passages: list[Passage], tiny_path: Path) -> list[PlannedCell]:
    write_set(tmp_path, passages)
    config = settings(tmp_path, ModelConfig(path=str(tiny_path)), methods=list(COSTS), seeds=[0, 1])
    return make_plan(config)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("ray_jobs.progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_what_is_said_holds_when_the_last_method_is_the_slowest(
    cells: list[PlannedCell], clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ray_jobs.progress")
    total, truth, time_left = sum(cell.questions for cell in cells), [], TimeLeft(cells, 1)
    rest = sum(cell.questions * COSTS[cell.method.name] for cell in cells)
    with progress_bar(total, "questions", time_left.left) as show:
        for cell in cells:
            for questions in (4, 2):
                seconds = questions * COSTS[cell.method.name]
                clock.now, rest = clock.now + seconds, rest - seconds
                time_left.count(cell.name, questions, seconds)
                lines = len(caplog.messages)
                show((total - time_left.questions_left,) * 2)
                truth += [rest] * (len(caplog.messages) - lines)
    said = [re.search(r"(at least|about) (\d+) (s|min) left", line) for line in caplog.messages]
    assert "0 s left" not in caplog.messages[-1] and said[-1] is None
    for line, found, left in zip(caplog.messages[:-1], said[:-1], truth[:-1], strict=True):
        if found is None:  # nothing is known of what is left
            assert line.endswith(", 1 method not timed yet")
            continue
        seconds = int(found[2]) * (60 if found[3] == "min" else 1)
        assert seconds == pytest.approx(left, abs=31) if found[1] == "about" else seconds <= left
    assert {found[1] for found in said[:-1] if found} == {"at least", "about"}
    assert "(2 methods not timed yet)" in caplog.messages[0]


def test_one_method_that_is_left_is_not_shared_by_workers_that_are_idle(cells: list[PlannedCell]) -> None:
    time_left = TimeLeft(cells, 4)
    for cell in cells[:-1]:
        time_left.count(cell.name, cell.questions, cell.questions * COSTS[cell.method.name])
    assert time_left.left() == (6 * COSTS["tta"], 0)


def test_workers_share_what_is_left(cells: list[PlannedCell]) -> None:
    time_left, rag = TimeLeft(cells, 2), [cell for cell in cells if cell.method.name != "tta"]
    for cell in rag[:2]:
        time_left.count(cell.name, cell.questions, cell.questions * COSTS[cell.method.name])
    assert time_left.left() == (pytest.approx(sum(cell.questions for cell in rag[2:]) * COSTS["rag"] / 2), 1)


def test_a_cell_that_is_restarted_counts_once(cells: list[PlannedCell]) -> None:
    time_left = TimeLeft(cells[:1], 1)
    time_left.count(cells[0].name, 4, 4.0)
    time_left.count(cells[0].name, 4, 4.0)
    assert (time_left.questions_left, time_left.left()) == (0, (0.0, 0))
