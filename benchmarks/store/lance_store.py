"""The same atoms in Lance: a column of ids with a B-tree, a column of fixed-size lists of bytes.

Lists of uint8 are what it writes and filters fastest of the types that can hold any codec's records (`pa.binary(n)`,
`pa.large_binary()`, its blobs). The data set is opened once and used again, so that its caches are warm.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch
from common import in_turn

from store.atoms import AtomSize, K, draws, passage_id, shards
from store.files import flush
from store.reading import cold_and_warm, fetch_row, measured
from store.writing import write_rows


class LanceStore:
    """One data set of atoms."""

    def __init__(self, uri: str, size: AtomSize, count: int) -> None:
        self.uri, self.size, self.count = uri, size, count
        self._type = pa.list_(pa.uint8(), size.bytes)
        self._schema = pa.schema([pa.field("id", pa.string()), pa.field("atom", self._type)])
        self._options = _options() if uri.startswith("s3://") else None

    def write(self) -> None:
        """All atoms, then the index."""
        written = lance.write_dataset(self._batches(), self.uri, self._schema, storage_options=self._options)
        written.create_scalar_index("id", "BTREE")

    def open(self) -> None:
        """Before reading."""
        self._dataset = lance.dataset(self.uri, storage_options=self._options)

    def sum_by_id(self, numbers: Sequence[int]) -> np.ndarray:
        """What a reader of a bank does, without the check of each atom's bytes."""
        names = ", ".join(f"'{passage_id(number)}'" for number in numbers)
        return self._sum(self._dataset.to_table(columns=["atom"], filter=f"id IN ({names})"))

    def sum_by_row(self, numbers: Sequence[int]) -> np.ndarray:
        """The least that it can take: somebody else knows the rows."""
        return self._sum(self._dataset.take(list(numbers), columns=["atom"]))

    def _sum(self, found: pa.Table) -> np.ndarray:
        out = np.zeros(self.size.numbers, np.float32)
        rows = 0
        for chunk in found["atom"].chunks:
            for atom in chunk.flatten().to_numpy().view(np.float32).reshape(-1, self.size.numbers):
                np.add(out, atom, out=out)
                rows += 1
        assert rows == K
        return out

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for first, records in shards(self.size, self.count):
            values = pa.Array.from_buffers(pa.uint8(), records.numel(), [None, pa.py_buffer(records.numpy())])
            ids = pa.array([passage_id(first + i) for i in range(len(records))])
            atoms = pa.FixedSizeListArray.from_arrays(values, self.size.bytes)
            yield pa.record_batch([ids, atoms], schema=self._schema)


def write_lance(folder: Path, size: AtomSize, count: int) -> list[dict[str, Any]]:
    """Lance leaves it to the system when its files reach the disk; the second row waits for that."""
    store, started = LanceStore(str(folder / "lance"), size, count), time.perf_counter()
    store.write()
    written = time.perf_counter() - started
    for file in (folder / "lance").rglob("*"):
        if file.is_file():
            flush(file)
    seconds = {"Lance, no fsync": written, "Lance, then fsync": time.perf_counter() - started}
    return write_rows(size, count, seconds)


def local_rows(folder: Path, size: AtomSize, count: int, times: int) -> Iterator[dict[str, Any]]:
    """By id and by row, with and without what the kernel has cached."""
    store, data = LanceStore(str(folder / "lance"), size, count), folder / "lance" / "data"
    store.open()
    yield from cold_and_warm(store.sum_by_id, data, size, count, "Lance by id", times)
    yield from cold_and_warm(store.sum_by_row, data, size, count, "Lance by row", times)


def open_ms(folder: Path, size: AtomSize, count: int) -> float:
    """The median of opening it again and again."""
    store = LanceStore(str(folder / "lance"), size, count)
    return 1e3 * in_turn({"open": store.open}, 20, torch.device("cpu"))["open"]


def remote_rows(uri: str, size: AtomSize, count: int, times: int) -> list[dict[str, Any]]:
    """From an object store."""
    store = LanceStore(uri, size, count)
    store.write()
    store.open()
    drawn = draws(count, times, seed=4)
    runs = {"S3, Lance by id": store.sum_by_id, "S3, Lance by row": store.sum_by_row}
    return [fetch_row(size, count, name, measured(run, drawn)) for name, run in runs.items()]


def _options() -> dict[str, str]:
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    return {**{name: os.environ[name] for name in names}, "allow_http": "true"}
