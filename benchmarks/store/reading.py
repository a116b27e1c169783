"""Fetching five random atoms of a bank and adding them up: from memory, from a disk, from an object store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from regrad.bank.config import TiersConfig
from regrad.bank.reader import BankReader
from store.atoms import AtomSize, draws, passage_id, percentiles
from store.files import evict

Sums = Callable[[Sequence[int]], object]
_POOL_BYTES = 256 * 1024 * 1024


def fetch_row(size: AtomSize, count: int, source: str, times: tuple[float, float]) -> dict[str, Any]:
    """One row of the table of fetches."""
    return {"atom": size.name, "passages": count, "from": source, "p50 ms": times[0], "p99 ms": times[1]}


def local_rows(folder: Path, size: AtomSize, count: int, times: int) -> Iterator[dict[str, Any]]:
    """From memory, and from the disk without and with what the kernel has cached of it."""
    uri = str(folder / "bank")
    pool = min(count, _POOL_BYTES // size.bytes)
    with BankReader(uri) as reader:
        for number in range(pool):
            reader.fetch([passage_id(number)])
        yield fetch_row(size, count, "memory", measured(_sums(reader), draws(pool, 10 * times, seed=1)))
    with BankReader(uri, tiers=TiersConfig(memory_bytes=0)) as reader:
        yield from cold_and_warm(_sums(reader), folder / "bank" / "shards", size, count, "disk", times)


def cold_and_warm(
    run: Sums, folder: Path, size: AtomSize, count: int, source: str, times: int
) -> Iterator[dict[str, Any]]:
    """The same draws twice: first with nothing of the folder in the page cache, then with all that they need."""
    run(draws(count, 1, seed=2)[0])
    drawn = draws(count, times, seed=3)
    evict(folder)
    yield fetch_row(size, count, f"{source}, evicted", percentiles(run, drawn))
    yield fetch_row(size, count, f"{source}, cached", percentiles(run, drawn))


def remote_rows(uri: str, disk: Path, size: AtomSize, count: int, times: int) -> Iterator[dict[str, Any]]:
    """From an object store with nothing in between, and from the disk tier once all is there."""
    drawn = draws(count, times, seed=4)
    for source, cache in (("S3", None), ("S3, disk tier", str(disk))):
        with BankReader(uri, tiers=TiersConfig(memory_bytes=0, disk=cache)) as reader:
            yield fetch_row(size, count, source, measured(_sums(reader), drawn))


def measured(run: Sums, drawn: Sequence[Sequence[int]]) -> tuple[float, float]:
    """p50 and p99 after all draws have been made once."""
    percentiles(run, drawn)
    return percentiles(run, drawn)


def _sums(reader: BankReader) -> Sums:
    return lambda numbers: reader.sum([passage_id(number) for number in numbers])
