"""Random atoms of a given size, ready to be written, without drawing gigabytes of random numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regrad.bank.codecs import codec_for
from regrad.bank.format import Layout
from regrad.models.subspace import Subspace

K = 5
_SHARD_BYTES = 64 * 1024 * 1024
_STEP = 4096


@dataclass(frozen=True)
class AtomSize:
    """Atoms of float32, `numbers` of them each (a multiple of 8)."""

    name: str
    numbers: int

    @property
    def bytes(self) -> int:
        """Bytes of one record."""
        return 4 * self.numbers

    @property
    def shard_rows(self) -> int:
        """Atoms in a shard of 64 MiB."""
        return _SHARD_BYTES // self.bytes

    @property
    def layout(self) -> Layout:
        """One module with tensors of rank 4."""
        subspace = Subspace((("module", self.numbers // 8, self.numbers // 8),), 4, 1.0)
        if codec_for("float32", subspace).record_bytes != self.bytes:
            raise ValueError(f"{self.numbers} is not a multiple of 8")
        return Layout(fingerprint="0" * 16, codec="float32", subspace=subspace.to_json())


SMALL = AtomSize("64 KB", 1 << 14)
LARGE = AtomSize("4 MB", 1 << 20)


def passage_id(number: int) -> str:
    """The id of a passage."""
    return f"passage-{number:08d}"


def shards(size: AtomSize, count: int) -> Iterator[tuple[int, Tensor]]:
    """The first passage's number and the records [n, bytes] uint8 of each shard.

    All are windows into one block of normal numbers, each at another place, so no two shards have the same content.
    """
    starts = range(0, count, size.shard_rows)
    most = min(count, size.shard_rows) * size.bytes
    block = np.random.default_rng(0).standard_normal((most + _STEP * len(starts)) // 4, dtype=np.float32)
    data = torch.from_numpy(block.view(np.uint8))
    for i, start in enumerate(starts):
        rows = min(size.shard_rows, count - start)
        yield start, data[i * _STEP : i * _STEP + rows * size.bytes].view(rows, size.bytes)


def draws(count: int, times: int, seed: int) -> list[list[int]]:
    """As many times five different passages."""
    rng = np.random.default_rng(seed)
    return [rng.choice(count, K, replace=False).tolist() for _ in range(times)]


def percentiles(run: Callable[[Sequence[int]], object], drawn: Sequence[Sequence[int]]) -> tuple[float, float]:
    """p50 and p99 of the milliseconds that one of them takes."""
    milliseconds = []
    for numbers in drawn:
        started = time.perf_counter()
        run(numbers)
        milliseconds.append(1e3 * (time.perf_counter() - started))
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return float(p50), float(p99)
