"""What a step leaves: a run record with its settings, the versions of the software, timings, outputs and cost."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from regrad.errors import RebuildError, StorageError
from regrad.settings import Settings
from regrad.storage import Storage

RUNS = "runs"
_PACKAGES = ("regrad", "torch", "transformers", "tokenizers", "ray", "deepspeed", "numpy", "pyarrow", "faiss-cpu")


class CostConfig(Settings):
    """What a machine costs, so that plans and records can say what a step does."""

    node_hour: float | None = Field(None, ge=0, description="price of one machine per hour; null: unknown")
    nodes: int = Field(1, ge=1, description="number of machines paid for while a step runs")
    currency: str = "USD"


class MadeOutput(Settings):
    """Something that a step has made: where (from the rebuild's output), how large, and the digest of its content."""

    place: str
    bytes: int = Field(ge=0)
    digest: str


class Money(Settings):
    """What a step has cost, by the price that was set when it ran."""

    amount: float = Field(ge=0)
    currency: str


class RunRecord(Settings):
    """One run of a step. As long as `ended` is null it has not ended: it runs, or it was killed.

    `seconds` are those of the last attempt. With several `attempts` they say nothing of the whole work, nor do they if
    the work was found done (`seconds` null); plans then do not go by this record. `busy_seconds` is what all workers
    together were at work, without starting. `like` is what a step needs to have in common to take as long.
    """

    step: str
    key: str
    settings: dict[str, Any]
    like: Any = None
    software: dict[str, str]
    revision: str | None
    host: str
    began: datetime
    ended: datetime | None = None
    attempts: int = Field(1, ge=1)
    seconds: float | None = None
    busy_seconds: float | None = None
    workers: int = Field(1, ge=1)
    unit: str = ""
    count: int | None = Field(None, ge=0)
    line: str = ""
    facts: dict[str, Any] = Field({})
    outputs: tuple[MadeOutput, ...] = ()
    node_hours: dict[str, float] = Field({}, description="of machines in the cluster meanwhile, by kind")
    cost: Money | None = None

    @property
    def whole(self) -> bool:
        """Whether its time is that of all its work."""
        return self.ended is not None and self.attempts == 1 and self.seconds is not None

    @property
    def bytes(self) -> int:
        """Of all outputs."""
        return sum(output.bytes for output in self.outputs)


class Records:
    """The run records of a rebuild's output: `runs/STEP-KEY.json`, the last run of each.

    Another `folder` has those of other work; without `by_key` a step has one record there, whatever its key is.
    """

    def __init__(self, output: Storage, folder: str = RUNS, by_key: bool = True) -> None:
        self._output = output
        self._folder = folder
        self._by_key = by_key

    def read(self, step: str, key: str) -> RunRecord | None:
        """The last run of a step with this key; None if there was none. Raises `RebuildError` if it is damaged."""
        name = self._name(step, key)
        return self._parsed(name) if self._output.exists(name) else None

    def write(self, record: RunRecord) -> None:
        """Write it whole, in the place of the last one of this step and key."""
        text = record.model_dump_json(indent=1) + "\n"
        self._output.write(self.name_of(record), text.encode())

    def name_of(self, record: RunRecord) -> str:
        """The name of its file, below the output."""
        return self._name(record.step, record.key)

    def remove(self, name: str) -> None:
        """Remove the record with this name, if it is there: its step is then looked at again."""
        self._output.remove_file(name)

    def all(self) -> Iterator[RunRecord]:
        """Every record, the one that began last first; raises as `read`."""
        names = [name for name in self._output.list(self._folder) if name.endswith(".json")]
        found = [self._parsed(f"{self._folder}/{name}") for name in names]
        yield from sorted(found, key=lambda record: record.began, reverse=True)

    def _parsed(self, name: str) -> RunRecord:
        try:
            return RunRecord.model_validate_json(self._output.read(name))
        except (ValidationError, StorageError) as error:
            if isinstance(error, StorageError):
                raise
            raise RebuildError(
                f"the run record {self._output.uri}/{name} is damaged, or of an earlier version; remove it, and its "
                "step is looked at again",
                code="record_damaged",
                uri=f"{self._output.uri}/{name}",
            ) from error

    def _name(self, step: str, key: str) -> str:
        return f"{self._folder}/{step.replace(' ', '-')}{f'-{key}' if self._by_key else ''}.json"


def cost_of(seconds: float, cost: CostConfig) -> Money | None:
    """What so many seconds on all machines cost; None without a price."""
    if cost.node_hour is None:
        return None
    return Money(amount=round(seconds / 3600 * cost.nodes * cost.node_hour, 6), currency=cost.currency)


def now() -> datetime:
    """To the millisecond."""
    return datetime.now(UTC).replace(microsecond=datetime.now(UTC).microsecond // 1000 * 1000)


def host() -> str:
    """This machine's name."""
    return socket.gethostname()


@cache
def software() -> dict[str, str]:
    """The versions that a result may depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def revision() -> str | None:
    """The commit of the source that runs, with `+changed` if files differ from it; None outside a Git checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return f"{head}+changed" if _git(root, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))
