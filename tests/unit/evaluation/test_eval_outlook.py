"""What a run says of the time that is left, by a clock of the test's own."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_jobs.progress import progress_bar
from regrad.data.passages import Passage
from regrad.evaluation.output import Outlook
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


def test_what_is_said_holds_when_the_last_method_is_the_dearest(
    cells: list[PlannedCell], clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ray_jobs.progress")
    total, truth, outlook = sum(cell.questions for cell in cells), [], Outlook(cells, 1)
    rest = sum(cell.questions * COSTS[cell.method.name] for cell in cells)
    with progress_bar(total, "questions", outlook.left) as show:
        for cell in cells:
            for questions in (4, 2):
                seconds = questions * COSTS[cell.method.name]
                clock.now, rest = clock.now + seconds, rest - seconds
                outlook.count(cell.name, questions, seconds)
                lines = len(caplog.messages)
                show((total - outlook.questions_left,) * 2)
                truth += [rest] * (len(caplog.messages) - lines)
    said = [re.search(r"(at least|about) (\d+) (s|min) left", line) for line in caplog.messages]
    assert "0 s left" not in caplog.messages[-1] and said[-1] is None
    for found, left in zip(said[:-1], truth[:-1], strict=True):
        assert found is not None
        seconds = int(found[2]) * (60 if found[3] == "min" else 1)
        assert seconds == pytest.approx(left, abs=31) if found[1] == "about" else seconds <= left
    assert {found[1] for found in said[:-1] if found} == {"at least", "about"}
    assert "(2 methods not timed yet)" in caplog.messages[0]


def test_one_method_that_is_left_is_not_shared_by_workers_that_are_idle(cells: list[PlannedCell]) -> None:
    outlook = Outlook(cells, 4)
    for cell in cells[:-1]:
        outlook.count(cell.name, cell.questions, cell.questions * COSTS[cell.method.name])
    assert outlook.left() == (6 * COSTS["tta"], 0)


def test_workers_share_what_is_left(cells: list[PlannedCell]) -> None:
    outlook, rag = Outlook(cells, 2), [cell for cell in cells if cell.method.name != "tta"]
    for cell in rag[:2]:
        outlook.count(cell.name, cell.questions, cell.questions * COSTS[cell.method.name])
    assert outlook.left() == (pytest.approx(sum(cell.questions for cell in rag[2:]) * COSTS["rag"] / 2), 1)


def test_a_cell_that_is_begun_again_counts_once(cells: list[PlannedCell]) -> None:
    outlook = Outlook(cells[:1], 1)
    outlook.count(cells[0].name, 4, 4.0)
    outlook.count(cells[0].name, 4, 4.0)
    assert (outlook.questions_left, outlook.left()) == (0, (0.0, 0))
