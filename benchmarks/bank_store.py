"""What the bank's store costs: writing, opening, finding, fetching and adding up; beside Lance if that is installed.

    python benchmarks/bank_store.py --json bank_store.json      (--quick: under a minute, no number of use)

Needs up to 8 GiB of disk at a time (`--directory`) and about 3 GB of memory. Nothing but Linux is tried.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import in_turn, show, write
from store.atoms import LARGE, SMALL, AtomSize
from store.files import bytes_of
from store.indexes import index_rows
from store.memory_sum import sum_rows
from store.object_store import object_store
from store.reading import local_rows, remote_rows
from store.writing import BANK, COPY, fill, write_bank

from regrad.bank.reader import BankReader

try:
    from store import lance_store
except ImportError:
    lance_store = None

Rows = list[dict[str, Any]]
FULL = ((SMALL, 10_000), (SMALL, 100_000), (LARGE, 2_000))
QUICK = ((SMALL, 500), (SMALL, 5_000), (LARGE, 40))
REMOTE = ((SMALL, 1_000), (LARGE, 100))
INDEXES = (10_000, 100_000, 10_000_000)
QUICK_INDEXES = (10_000, 100_000, 200_000)


@dataclass
class Tables:
    """The rows of every table."""

    write: Rows = field(default_factory=list)
    open: Rows = field(default_factory=list)
    fetch: Rows = field(default_factory=list)
    index: Rows = field(default_factory=list)
    sum: Rows = field(default_factory=list)

    def all(self) -> Rows:
        """All rows, each with the name of its table."""
        return [{"table": name, **row} for name, rows in vars(self).items() for row in rows]


def measure_local(folder: Path, size: AtomSize, count: int, times: int, tables: Tables) -> None:
    """One bank on the disk, then Lance's data set of the same atoms; neither is left."""
    bank = folder / "bank"
    tables.write += write_bank(folder, size, count)
    seconds = in_turn({"open": lambda: BankReader(str(bank))}, 20, torch.device("cpu"))["open"]
    tables.open.append(open_row(size, count, "bank", 1e3 * seconds, bank))
    tables.fetch += local_rows(folder, size, count, times)
    shutil.rmtree(bank)
    if lance_store:
        tables.write += lance_store.write_lance(folder, size, count)
        tables.open.append(open_row(size, count, "Lance", lance_store.open_ms(folder, size, count), folder / "lance"))
        tables.fetch += lance_store.local_rows(folder, size, count, times)
        shutil.rmtree(folder / "lance")


def open_row(size: AtomSize, count: int, store: str, milliseconds: float, folder: Path) -> dict[str, Any]:
    """How long opening takes, and what is on the disk for each byte of atoms."""
    share = bytes_of(folder) / (size.bytes * count)
    return {"atom": size.name, "passages": count, "store": store, "open ms": milliseconds, "bytes / atoms": share}


def measure_remote(folder: Path, tables: Tables) -> None:
    """Banks in an S3 server on this machine that keeps its objects in memory."""
    with object_store(folder / "s3") as bucket:
        if bucket is None:
            print("the S3 server cannot be installed here: no rows of S3")
            return
        for size, count in REMOTE:
            uri, times = f"{bucket}/{size.numbers}", 200 if size is SMALL else 40
            fill(uri, size, count)
            tables.fetch += remote_rows(uri, folder / "tier", size, count, times)
            shutil.rmtree(folder / "tier")
            if lance_store:
                tables.fetch += lance_store.remote_rows(f"{uri}-lance", size, count, times)


def measure_sums(folder: Path, repeats: int, tables: Tables) -> None:
    """Both sizes of atoms, in memory."""
    for size, pool in ((SMALL, 1_000), (LARGE, 40)):
        fill(str(folder / "bank"), size, pool)
        tables.sum += sum_rows(folder, size, pool, repeats)
        shutil.rmtree(folder / "bank")


def measure(folder: Path, quick: bool, tables: Tables) -> None:
    """Everything, one after the other."""
    for size, count in QUICK if quick else FULL:
        measure_local(folder, size, count, 20 if quick else 400 if size is SMALL else 100, tables)
    if not quick:
        measure_remote(folder, tables)
    tables.index += index_rows(folder, QUICK_INDEXES if quick else INDEXES)
    measure_sums(folder, 3 if quick else 15, tables)


def figures(tables: Tables) -> dict[str, float]:
    """Growth is the value at the most passages over that at 100,000."""
    middle, last = tables.index[-2], tables.index[-1]
    found = {
        "open_growth": last["open ms"] / middle["open ms"],
        "lookup_growth": last["find p50 us"] / middle["find p50 us"],
        "write_vs_copy": write_vs_copy(tables.write),
        "memory_sum_vs_numpy": min(row["ratio"] for row in tables.sum),
        "index_bytes_per_passage": last["bytes a passage"],
    }
    most = {(row["atom"], row["from"]): row["p50 ms"] for row in tables.fetch}
    return found | {f"fetch p50 ms, {atom}, {source}": value for (atom, source), value in most.items()}


def growth(tables: Tables) -> Rows:
    """Each value of the small atoms at the most passages over that at the fewest."""
    kinds = {"way": (tables.write, "MB/s"), "store": (tables.open, "open ms"), "from": (tables.fetch, "p50 ms")}
    found = []
    for label, (rows, value) in kinds.items():
        for name in dict.fromkeys(row[label] for row in rows):
            values = [row[value] for row in rows if row["atom"] == SMALL.name and row[label] == name]
            if len(values) > 1:
                found.append({"what": name, "value": value, "growth": values[-1] / values[0]})
    return found


def write_vs_copy(rows: Sequence[dict[str, Any]]) -> float:
    """Seconds of copying with an fsync over our seconds, at the most small atoms."""
    most = max(row["passages"] for row in rows)
    seconds = {row["way"]: row["seconds"] for row in rows if row["atom"] == SMALL.name and row["passages"] == most}
    return float(seconds[COPY] / seconds[BANK])


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--directory", default=None, metavar="PATH", help="on the disk to measure; default: temporary")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables = Tables()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        measure(Path(name), arguments.quick, tables)
    found = figures(tables)
    scalars = [{"figure": name, "value": value} for name, value in found.items()]
    for rows in (tables.write, tables.open, tables.fetch, growth(tables), tables.index, tables.sum, scalars):
        show(rows)
        print()
    if not lance_store:
        print("pylance is not installed: no row")
    if arguments.json:
        write(arguments.json, found, tables.all(), torch.device("cpu"))


if __name__ == "__main__":
    main()
