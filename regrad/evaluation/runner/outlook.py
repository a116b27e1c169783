"""How long the cells that are left will take, from what questions have taken so far by the same method."""

from __future__ import annotations

from collections.abc import Sequence

from regrad.evaluation.runner.plan import PlannedCell


class Outlook:
    """Methods can differ in cost a hundredfold: of one that has not been timed nothing is said."""

    def __init__(self, cells: Sequence[PlannedCell], workers: int) -> None:
        self._workers = workers
        self._kinds = {cell.name: (cell.model_name, cell.method.name) for cell in cells}
        self._questions = {cell.name: cell.questions for cell in cells}
        self._timed: dict[tuple[str, str], tuple[int, float]] = {}

    def count(self, name: str, questions: int, seconds: float) -> None:
        """A worker has answered so many questions of a cell; one that is begun again counts no question twice."""
        self._questions[name] = max(0, self._questions[name] - questions)
        before = self._timed.get(self._kinds[name], (0, 0.0))
        self._timed[self._kinds[name]] = before[0] + questions, before[1] + seconds

    @property
    def questions_left(self) -> int:
        """Of all cells together."""
        return sum(self._questions.values())

    def left(self) -> tuple[float, int]:
        """Seconds for what is left by methods that have been timed, and how many others are still to come.

        The questions of one cell are answered by one worker, so that the longest cell counts as well.
        """
        seconds, others = [0.0], set()
        for name, questions in self._questions.items():
            if questions and self._kinds[name] not in self._timed:
                others.add(self._kinds[name])
            elif questions:
                answered, taken = self._timed[self._kinds[name]]
                seconds.append(questions * taken / answered)
        return max(sum(seconds) / self._workers, *seconds), len(others)
