"""Running cells one after the other in one process, and keeping their records."""

from __future__ import annotations

import torch

from regrad.config import EvalConfig
from regrad.errors import EvaluationError
from regrad.evaluation.runner.cell import CellRunner, Done, unheard
from regrad.evaluation.runner.output import Output
from regrad.evaluation.runner.plan import PlannedCell
from regrad.language_model.loading import load_language_model


class Cells:
    """Runs cells and writes their records; keeps the model of the last one."""

    def __init__(self, config: EvalConfig, device: str) -> None:
        self._config, self._device, self._output = config, device, Output(config.output)
        self._runner: tuple[str, CellRunner] | None = None

    def run(self, cell: PlannedCell, done: Done = unheard) -> None:
        """Answer and score the cell's questions and write the records; `done` hears of each batch and its seconds."""
        try:
            result = self._runner_of(cell).run(cell, done)
        except torch.OutOfMemoryError as error:
            raise EvaluationError(
                f"{cell.label}: the GPU's memory is too small for batch.rows={self._config.batch.rows} and "
                f"batch.questions={self._config.batch.questions}; lower them"
            ) from error
        self._output.save(cell, result, self._config.batch.rows)

    def _runner_of(self, cell: PlannedCell) -> CellRunner:
        if self._runner is None or self._runner[0] != cell.model_name:
            self._runner = None  # two models at once may be more than there is room for
            self._runner = cell.model_name, CellRunner(load_language_model(cell.model, self._device), self._config)
        return self._runner[1]
