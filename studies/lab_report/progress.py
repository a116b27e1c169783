"""Which steps of a report are done: a small file a step, written when it is complete, so that it is done once."""

from __future__ import annotations

import json
from typing import Any

from regrad.errors import EvaluationError
from regrad.storage import Storage
from studies.lab_report.step import Step


class Progress:
    """The directory `steps` of a report."""

    def __init__(self, output: str) -> None:
        self._storage = Storage(f"{output}/steps")

    def done(self, step: Step) -> bool:
        """Whether the step is complete; raises `EvaluationError` if it is, but with other settings."""
        if not self._storage.exists(_name(step)):
            return False
        if self._note(_name(step)).get("settings") == step.work.content():
            return True
        if not step.is_evaluation:
            raise EvaluationError(
                f"step '{step.name}' at {self._storage.uri} was done with other settings; give the report another "
                "output, or remove this one"
            )
        return False  # its cells know themselves which of them are still good

    def finish(self, step: Step, line: str, seconds: float, clock: float) -> None:
        """Note that a step is complete, what it took, and for how long the report has been at work in all."""
        note = {
            "line": line,
            "seconds": round(seconds, 1),
            "clock": round(clock, 1),
            "settings": step.work.content(),
        }
        self._storage.write(_name(step), (json.dumps(note, indent=1) + "\n").encode())

    def clock(self) -> float:
        """Seconds that earlier calls were at work, up to the last step that they finished."""
        return max((float(self._note(name).get("clock", 0.0)) for name in self._storage.list()), default=0.0)

    def _note(self, name: str) -> dict[str, Any]:
        try:
            note = json.loads(self._storage.read(name))
        except ValueError:
            note = None
        if not isinstance(note, dict):
            raise EvaluationError(f"{self._storage.uri}/{name} is damaged; remove it, and its step is done again")
        return note


def _name(step: Step) -> str:
    return f"{step.name.replace(' ', '-')}.json"
