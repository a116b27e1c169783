"""What a run leaves: its plan, the records of its cells, what they cost, and how long the rest will take."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import Field, ValidationError

from regrad.bank.builder import read_preparation
from regrad.bank.format import read_manifest
from regrad.errors import EvaluationError
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.plan import PlannedCell
from regrad.evaluation.records import Record, read_metadata, read_records, write_records
from regrad.locking import exclusive
from regrad.methods.base import MethodSettings
from regrad.settings import Settings
from regrad.storage import Storage, check_replaceable
from regrad.training.lora.lora_artifact import corpus_costs


@dataclass
class Seconds:
    """Where the time of a cell went; loading a model and opening a bank or an index are in none of them."""

    retrieval: float = 0.0
    update: float = 0.0
    generation: float = 0.0

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Adds the block's time to a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, part, getattr(self, part) + time.perf_counter() - started)


@dataclass
class CellResult:
    """The records of a cell, in the order of the questions, and how it was run."""

    records: list[Record]
    seconds: Seconds
    device: str


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


logger = logging.getLogger(__name__)

PLAN = "plan.json"
_FORMAT = 1
_RUN = "run"


class CellCard(Settings):
    """A cell as the plan has it. `preparation_ms` and `storage_bytes` are of one passage, where they are known."""

    name: str = Field(pattern=r"^[^/\\]+$")
    model: str
    set: str
    method: str
    k: int
    seed: int
    questions: int
    preparation_ms: float | None = None
    storage_bytes: float | None = None


class Planned(Settings):
    """What a run was asked for."""

    format: int = Field(ge=_FORMAT, le=_FORMAT)
    metric: Literal["em", "f1"]
    compare_to: str | None
    k: tuple[int, ...]
    cells: tuple[CellCard, ...]


class RunCard(Settings):
    """How a cell was run: seconds of all its questions together, and on what."""

    retrieval: float
    update: float
    generation: float
    device: str
    rows: int


class Output:
    """The files of a run at one place."""

    def __init__(self, uri: str) -> None:
        self.storage = Storage(uri)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For one run at a time; raises `EvaluationError` if another one is at this place now."""

        def busy(holder: str) -> EvaluationError:
            return EvaluationError(
                f"another `regrad eval` writes to {self.storage.uri} now; wait for it, or choose another output "
                f"(it is {holder})"
            )

        with exclusive(self.storage, busy):
            yield

    def start(self, planned: Planned, cells: list[PlannedCell]) -> list[PlannedCell]:
        """Write the plan of these cells; returns those that are not done. A damaged file is removed.

        Raises `StorageError` if something else is there.
        """
        check_replaceable(self.storage.uri, PLAN)
        self.storage.write(PLAN, planned.model_dump_json(indent=1).encode())
        there = set(self.storage.list("cells"))
        for cell in cells:
            if f"{cell.name}.parquet" in there and self.sound(cell.name, "is run again") is None:
                self.storage.remove_file(f"cells/{cell.name}.parquet")
                there.remove(f"{cell.name}.parquet")
        return [cell for cell in cells if f"{cell.name}.parquet" not in there]

    def save(self, cell: PlannedCell, result: CellResult, rows: int) -> None:
        """Write a cell that is done."""
        run = RunCard(**vars(result.seconds), device=result.device, rows=rows)
        write_records(self.storage, f"cells/{cell.name}.parquet", result.records, {_RUN: run.model_dump_json()})

    def planned(self) -> Planned:
        """What the last run was asked for; raises `EvaluationError` if there was none."""
        if not self.storage.exists(PLAN):
            raise EvaluationError(f"there is no run at {self.storage.uri}: {PLAN} is missing; run `regrad eval` first")
        try:
            return Planned.model_validate_json(self.storage.read(PLAN))
        except ValidationError as error:
            raise EvaluationError(f"{self.storage.uri}/{PLAN} is damaged; `regrad eval` renews it") from error

    def done(self, planned: Planned) -> list[CellCard]:
        """The cells of the plan that have records."""
        there = set(self.storage.list("cells"))
        return [card for card in planned.cells if f"{card.name}.parquet" in there]

    def records(self, card: CellCard) -> list[Record]:
        """The records of a cell; raises `EvaluationError` if they are damaged."""
        return read_records(self.storage, f"cells/{card.name}.parquet")

    def sound(self, name: str, then: str) -> list[Record] | None:
        """The records of a cell that has a file; None, after a warning that says what comes of it, if it is damaged."""
        file = f"cells/{name}.parquet"
        try:
            records = read_records(self.storage, file)
        except EvaluationError as error:
            logger.debug("%s", error)
            records = []
        if not records:
            logger.warning("%s/%s is damaged: the cell %s", self.storage.uri, file, then)
        return records or None

    def run_card(self, card: CellCard) -> RunCard | None:
        """How a cell was run, if that is known."""
        try:
            return RunCard.model_validate_json(read_metadata(self.storage, f"cells/{card.name}.parquet").get(_RUN, ""))
        except ValidationError:
            return None


def plan_of(config: EvalConfig, cells: Sequence[PlannedCell]) -> Planned:
    """What a run of these cells is asked for, as it stands in its directory."""
    return Planned(
        format=_FORMAT,
        metric=config.metric,
        compare_to=config.compare_to,
        k=config.k,
        cells=tuple(_card(cell) for cell in cells),
    )


def _card(cell: PlannedCell) -> CellCard:
    return CellCard(
        name=cell.name,
        model=cell.model_name,
        set=cell.set.name,
        method=cell.method.name,
        k=cell.k,
        seed=cell.seed,
        questions=cell.questions,
        **_costs(cell.method),
    )


def _costs(method: MethodSettings) -> dict[str, float | None]:
    """What the method's bank, or the LoRA that was trained on a corpus, is known to cost, of one passage."""
    uses = method.artefacts
    if uses.bank is None:
        found = corpus_costs(uses.adapter) if uses.adapter else None
        return asdict(found) if found else {}
    manifest = read_manifest(Storage(uses.bank), uses.bank_version)
    preparation = read_preparation(uses.bank, manifest.version)
    return {
        "preparation_ms": preparation.milliseconds_per_passage if preparation else None,
        "storage_bytes": float(manifest.record_bytes),
    }
