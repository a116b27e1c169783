"""The files of a run: its plan, the records of its cells and what they cost; and how long the rest will take."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import Field, ValidationError

from regrad.errors import EvaluationError
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.plan import PlannedCell
from regrad.evaluation.records import Record, read_metadata, read_records, write_records
from regrad.locking import exclusive
from regrad.settings import Settings
from regrad.storage import Storage, check_replaceable

logger = logging.getLogger(__name__)

PLAN = "plan.json"
_FORMAT = 1
_RUN = "run"


@dataclass
class Seconds:
    """Where the time of a cell went, without loading the model and opening banks and indexes."""

    retrieval: float = 0.0
    update: float = 0.0
    generation: float = 0.0

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Add the block's time to a part."""
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


class TimeLeft:
    """How long the rest of a run takes, by what a question has taken so far with the same model and method."""

    # Methods can differ in cost a hundredfold, so one that has not been timed is counted, not estimated.

    def __init__(self, cells: Sequence[PlannedCell], workers: int) -> None:
        self._workers = workers
        self._kinds = {cell.name: (cell.model_name, cell.method.name) for cell in cells}
        self._questions = {cell.name: cell.questions for cell in cells}
        self._timed: dict[tuple[str, str], tuple[int, float]] = {}

    def count(self, name: str, questions: int, seconds: float) -> None:
        """A worker has answered this many questions of a cell; a cell that was restarted counts no question twice."""
        self._questions[name] = max(0, self._questions[name] - questions)
        before = self._timed.get(self._kinds[name], (0, 0.0))
        self._timed[self._kinds[name]] = before[0] + questions, before[1] + seconds

    @property
    def questions_left(self) -> int:
        """The questions of all cells that are not answered yet."""
        return sum(self._questions.values())

    def left(self) -> tuple[float, int]:
        """Seconds for the rest of the methods that have been timed, and how many other methods are still to come."""
        seconds = [0.0]
        others = set()
        for name, questions in self._questions.items():
            if questions and self._kinds[name] not in self._timed:
                others.add(self._kinds[name])
            elif questions:
                answered, taken = self._timed[self._kinds[name]]
                seconds.append(questions * taken / answered)
        # The questions of one cell are answered by one worker, so it takes at least as long as the longest cell.
        return max(sum(seconds) / self._workers, *seconds), len(others)


class CellCard(Settings):
    """A cell as the plan has it.

    `demonstrations` says how many and which; `preparation_ms` and `storage_bytes` are for one passage, if they are
    known.
    """

    name: str = Field(pattern=r"^[^/\\]+$")
    model: str
    set: str
    method: str
    k: int
    seed: int
    questions: int
    retriever: str = ""
    demonstrations: str = ""
    preparation_ms: float | None = None
    storage_bytes: float | None = None


class Planned(Settings):
    """A run's plan, as its directory has it."""

    format: int = Field(ge=_FORMAT, le=_FORMAT)
    metric: Literal["em", "f1"]
    compare_to: str | None
    k: tuple[int, ...]
    cells: tuple[CellCard, ...]


class RunCard(Settings):
    """How a cell was run: the seconds for all its questions, and the device."""

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
        """Lock the place for this run; raises `EvaluationError` if another run is writing to it now."""

        def busy(holder: str) -> EvaluationError:
            return EvaluationError(
                f"another `regrad eval` is writing to {self.storage.uri}; wait for it, or choose another output "
                f"(it is {holder})",
                code="output_busy",
                uri=self.storage.uri,
            )

        with exclusive(self.storage, busy):
            yield

    def start(self, planned: Planned, cells: list[PlannedCell]) -> list[PlannedCell]:
        """Write the plan of these cells and remove damaged files; returns the cells that are not done.

        Raises `StorageError` if there is something other than a run at this place.
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
        """Write the records of a cell that is done."""
        run = RunCard(**vars(result.seconds), device=result.device, rows=rows)
        write_records(self.storage, f"cells/{cell.name}.parquet", result.records, {_RUN: run.model_dump_json()})

    def planned(self) -> Planned:
        """The last run's plan; raises `EvaluationError` if there was no run."""
        uri = self.storage.uri
        if not self.storage.exists(PLAN):
            raise EvaluationError(
                f"there is no run at {uri}: {PLAN} is missing; run `regrad eval` first", code="run_not_found", uri=uri
            )
        try:
            return Planned.model_validate_json(self.storage.read(PLAN))
        except ValidationError as error:
            raise EvaluationError(
                f"{uri}/{PLAN} is damaged; `regrad eval` writes it again", code="plan_damaged", uri=uri
            ) from error

    def done(self, planned: Planned) -> list[CellCard]:
        """The cells of the plan that have records."""
        there = set(self.storage.list("cells"))
        return [card for card in planned.cells if f"{card.name}.parquet" in there]

    def records(self, card: CellCard) -> list[Record]:
        """The records of a cell; raises `EvaluationError` if they are damaged."""
        return read_records(self.storage, f"cells/{card.name}.parquet")

    def sound(self, name: str, then: str) -> list[Record] | None:
        """The records of a cell that has a file, or None, after a warning that ends with `then`, if it is damaged."""
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
    """The plan of a run of these cells."""
    cards = []
    for cell in cells:
        card = CellCard(
            name=cell.name,
            model=cell.model_name,
            set=cell.set.name,
            method=cell.method.name,
            k=cell.k,
            seed=cell.seed,
            questions=cell.questions,
            retriever=cell.retriever,
            demonstrations=cell.method.demonstrations_named,
            **asdict(cell.method.costs()),
        )
        cards.append(card)
    return Planned(format=_FORMAT, metric=config.metric, compare_to=config.compare_to, k=config.k, cells=tuple(cards))
