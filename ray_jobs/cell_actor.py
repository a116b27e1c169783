"""The actor that runs cells. In a module of its own: a job's main module is pickled by value."""

from __future__ import annotations

from typing import Any

import torch

from ray_jobs.cluster import device
from regrad.config import EvalConfig
from regrad.errors import EvaluationError
from regrad.evaluation.runner.cell import CellRunner
from regrad.evaluation.runner.output import Output
from regrad.evaluation.runner.plan import PlannedCell
from regrad.language_model.loading import load_language_model


class CellActor:
    """Runs cells and writes their records; keeps the model of the last one."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._config = EvalConfig.model_validate(settings)
        self._output = Output(self._config.output)
        self._runner: tuple[str, CellRunner] | None = None

    def run(self, cell: PlannedCell, progress: Any) -> None:
        """Answer and score the cell's questions and write the records; `progress` hears of each batch."""
        try:
            result = self._runner_of(cell).run(cell, progress.push.remote)
        except torch.OutOfMemoryError as error:
            raise EvaluationError(
                f"{cell.label}: the GPU's memory is too small for batch.rows={self._config.batch.rows} and "
                f"batch.questions={self._config.batch.questions}; lower them"
            ) from error
        self._output.save(cell, result, self._config.batch.rows)

    def _runner_of(self, cell: PlannedCell) -> CellRunner:
        if self._runner is None or self._runner[0] != cell.model_name:
            self._runner = None  # two models at once may be more than there is room for
            self._runner = cell.model_name, CellRunner(load_language_model(cell.model, device()), self._config)
        return self._runner[1]
