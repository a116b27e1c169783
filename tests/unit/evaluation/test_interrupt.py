"""What is left of a run that a person stops."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_jobs import evaluate
from regrad.data.passages import Passage
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.output import CellResult, Output, Seconds
from regrad.evaluation.plan import PlannedCell, make_plan
from regrad.models.config import ModelConfig
from tests.tools.evaluating import record, settings, write_set

Stop = Callable[[int], str]


@pytest.fixture
def config(tmp_path: Path, passages: list[Passage], tiny_path: Path) -> EvalConfig:
    write_set(tmp_path, passages)
    return settings(tmp_path, ModelConfig(path=str(tiny_path)))


@pytest.fixture
def stop(config: EvalConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Stop:
    """Run, and be stopped after so many cells; returns what is said then."""

    def stopped(after: int) -> str:
        def cells_run(config: EvalConfig, cells: list[PlannedCell]) -> None:
            for cell in cells[:after]:
                rows = [record(f"q{n}", True, cell.method.name, k=cell.k) for n in range(cell.questions)]
                Output(config.output).save(cell, CellResult(rows, Seconds(), "a processor"), 32)
            raise KeyboardInterrupt

        monkeypatch.setattr(evaluate, "run_cells", cells_run)
        caplog.clear()
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(config)
        return "\n".join(line.getMessage() for line in caplog.records if line.levelno == logging.WARNING)

    return stopped


def test_an_interrupt_says_what_is_kept_and_leaves_a_report(config: EvalConfig, stop: Stop, tmp_path: Path) -> None:
    line = stop(1)
    assert line.startswith("1 of 3 cells are done and kept; the same command continues with the rest; report at ")
    assert "2 of 3 cells are not done yet" in (tmp_path / "out" / "report.md").read_text()


def test_before_the_first_cell_there_is_nothing_to_report(config: EvalConfig, stop: Stop, tmp_path: Path) -> None:
    assert stop(0) == "0 of 3 cells are done and kept; the same command continues with the rest"
    assert not (tmp_path / "out" / "report.md").exists()


def test_a_long_report_is_left_to_another_command(
    config: EvalConfig, stop: Stop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "_QUICKLY_REPORTED", 11)
    assert stop(2).endswith("the rest; --report-only makes a report of what there is")
    assert not (tmp_path / "out" / "report.md").exists()


@pytest.mark.slow
def test_a_damaged_cell_that_was_not_run_again_is_not_counted(config: EvalConfig, stop: Stop, tmp_path: Path) -> None:
    stop(3)
    (tmp_path / "out" / "cells" / f"{make_plan(config)[1].name}.parquet").write_bytes(b"PAR1")
    damaged, kept = stop(0).splitlines()
    assert "is damaged" in damaged and kept.startswith("2 of 3 cells are done")
