"""Writing a bank against a plain copy of the same files, shard by shard in turn."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from regrad.bank.writer import BankWriter
from store.atoms import AtomSize, passage_id, shards
from store.files import copy

BANK, COPY, CACHED = "bank", "copy, fsync", "copy, no fsync"


class Stopwatch:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add what happens here."""
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started


def write_bank(folder: Path, size: AtomSize, count: int) -> list[dict[str, Any]]:
    """Fill a bank with records that are ready; of each new shard file, two copies are made at once and removed."""
    writer, clock = BankWriter(str(folder / "bank"), size.layout, size.shard_rows), Stopwatch()
    known: set[Path] = set()
    for first, records in shards(size, count):
        rows = list(records)
        with clock(BANK):
            _add(writer, first, rows)
        _copy_new(folder, known, clock)
    with clock(BANK):
        writer.commit()
    _copy_new(folder, known, clock)
    return write_rows(size, count, clock.seconds)


def fill(uri: str, size: AtomSize, count: int) -> None:
    """A bank anywhere, without a look at the clock."""
    writer = BankWriter(uri, size.layout, size.shard_rows)
    for first, records in shards(size, count):
        _add(writer, first, list(records))
    writer.commit()


def _add(writer: BankWriter, first: int, rows: list[Tensor]) -> None:
    for i, record in enumerate(rows):
        writer.add_record(passage_id(first + i), "", record)


def _copy_new(folder: Path, known: set[Path], clock: Stopwatch) -> None:
    """Copy the shards that are not known yet, once durably and once not; no copy is left."""
    for shard in set((folder / "bank" / "shards").glob("*.safetensors")) - known:
        known.add(shard)
        for name, durable in ((COPY, True), (CACHED, False)):
            with clock(name):
                copy(shard, folder / "copy", durable)
            (folder / "copy").unlink()


def write_rows(size: AtomSize, count: int, seconds: dict[str, float]) -> list[dict[str, Any]]:
    """One row a way."""
    total = size.bytes * count / 1e6
    return [
        {"atom": size.name, "passages": count, "way": name, "seconds": value, "MB/s": total / value}
        for name, value in seconds.items()
    ]
