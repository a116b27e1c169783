"""What a plan came to: for people and for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from regrad.planning.prediction import Prediction
from regrad.planning.profile import Machine, Observed
from regrad.planning.search import Choice
from regrad.text import aligned, milliseconds, readable_size

_COLUMNS = (
    *("users", "first token", "p50", "answers/s", "a core", "bound by"),
    *("embedded", "replicas", "at once", "rows", "cache"),
)


@dataclass(frozen=True)
class CheckedRow:
    """One load of the check: the configuration's name, its turn, and what was predicted and observed."""

    name: str
    turn: int
    predicted: Prediction
    observed: Observed


@dataclass(frozen=True)
class PlanReport:
    """The front, the configuration chosen and the one given, and what the check found, if it was asked for.

    `replicas` in the table are those of gateway, retriever, bank loader and generator; of an embedded server those of
    gateway and generator.
    """

    users: int
    machine: Machine
    front: tuple[Choice, ...]
    chosen: Choice
    given: Choice
    place: str
    rows: tuple[CheckedRow, ...] = ()

    def checked(self, rows: Sequence[CheckedRow]) -> PlanReport:
        """With what the check found."""
        return replace(self, rows=tuple(rows))

    @property
    def figures(self) -> dict[str, float]:
        """`worst_prediction_error` of rate and p50 of both, relative to what was measured; `gain_over_default`."""
        if not self.rows:
            return {}
        checked = {name: self._medians(name) for name in ("given", "chosen")}
        errors = [
            abs(expected / found - 1)
            for name, (rate, p50) in checked.items()
            for expected, found in zip((self._of(name).rate, self._of(name).p50), (rate, p50), strict=True)
        ]
        gain = checked["chosen"][0] / checked["given"][0]
        return {"worst_prediction_error": max(errors), "gain_over_default": gain}

    def _of(self, name: str) -> Prediction:
        return (self.given if name == "given" else self.chosen).predicted

    def _medians(self, name: str) -> tuple[float, float]:
        found = [row.observed for row in self.rows if row.name == name]
        return statistics.median(one.rate for one in found), statistics.median(one.p50 for one in found)

    def described(self) -> str:
        """Tables for people."""
        lines = ["Time to first token against answers a second and core (Pareto front):", *self._table(self.front)]
        lines += ["", f"Given, and chosen for {self.users} users:", *self._table((self.given, self.chosen))]
        if self.rows:
            lines += ["", "Predicted and measured:", *self._check_table()]
            lines += [f"{name}: {value:.3f}" for name, value in self.figures.items()]
        return "\n".join([*lines, "", f"written to {self.place}; `regrad serve --config {self.place}` serves it"])

    def _table(self, choices: Sequence[Choice]) -> list[str]:
        return aligned([_COLUMNS, *(self._row(choice) for choice in choices)])

    def _row(self, choice: Choice) -> tuple[str, ...]:
        speed, one = choice.predicted, choice.candidate
        return (
            str(speed.users),
            milliseconds(speed.first_token),
            milliseconds(speed.p50),
            f"{speed.rate:.1f}",
            f"{speed.rate / self.machine.cores:.1f}",
            speed.bottleneck,
            "yes" if one.embedded else "no",
            "+".join(str(one.replicas(role)) for role in one.deployments),
            str(one.at_once),
            str(one.rows),
            readable_size(one.cache_bytes),
        )

    def _check_table(self) -> list[str]:
        return aligned([("configuration", "figure", "predicted", "measured", "error"), *self._check_rows()])

    def _check_rows(self) -> Iterator[tuple[str, ...]]:
        for name in ("given", "chosen"):
            rate, p50 = self._medians(name)
            of = self._of(name)
            yield name, "answers/s", f"{of.rate:.1f}", f"{rate:.1f}", f"{of.rate / rate - 1:+.1%}"
            yield name, "p50 ms", f"{1e3 * of.p50:.0f}", f"{1e3 * p50:.0f}", f"{of.p50 / p50 - 1:+.1%}"

    def as_json(self) -> str:
        """For programs."""
        data: dict[str, Any] = {
            "users": self.users,
            "machine": self.machine.model_dump(),
            "front": [_choice(one) for one in self.front],
            "chosen": _choice(self.chosen),
            "given": _choice(self.given),
            "serve": self.place,
            "check": [
                {"name": row.name, "turn": row.turn, "predicted": asdict(row.predicted), **_measured(row.observed)}
                for row in self.rows
            ],
            "figures": self.figures,
        }
        return json.dumps(data, indent=1) + "\n"


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "configuration": choice.candidate.model_dump(),
        "predicted": asdict(choice.predicted),
        "memory_bytes": choice.memory_bytes,
    }


def _measured(observed: Observed) -> dict[str, Any]:
    return {"measured": observed.model_dump()}
