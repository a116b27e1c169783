"""The actors that answer an evaluation's questions. They load nothing of what its report is made with."""

from __future__ import annotations

from typing import Any

from ray_jobs.cluster import model_devices
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.plan import PlannedCell
from regrad.evaluation.runner import Cells


class CellActor:
    """Runs cells and writes their records; keeps the model of the last one."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._cells = Cells(EvalConfig.model_validate(settings), model_devices())

    def run(self, cell: PlannedCell, progress: Any) -> None:
        """Answer and score the cell's questions and write the records; `progress` gets the numbers of each batch."""
        self._cells.run(cell, lambda questions, seconds: progress.push.remote((cell.name, questions, seconds)))
