"""Adding five atoms that are in memory: a reader's `sum` by passage id against numpy on the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import in_turn

from regrad.bank.reader import BankReader
from store.atoms import AtomSize, draws, passage_id


def sum_rows(folder: Path, size: AtomSize, pool: int, repeats: int) -> list[dict[str, Any]]:
    """Once with five that stay in the processor's caches, once with random fives of the pool."""
    reader = BankReader(str(folder / "bank"))
    arrays = [_array(reader, number) for number in range(pool)]
    times = max(20, (64 << 20) // (5 * size.bytes))
    ways = {"the same five": [list(range(5))] * times, f"random, of {pool}": draws(pool, times, seed=5)}
    return [_row(reader, arrays, size, name, drawn, repeats) for name, drawn in ways.items()]


def _array(reader: BankReader, number: int) -> np.ndarray:
    """The very memory that the reader keeps."""
    record = reader.fetch([passage_id(number)])[0].record
    assert record is not None
    return record.numpy().view(np.float32)


def _row(
    reader: BankReader, arrays: list[np.ndarray], size: AtomSize, name: str, drawn: list[list[int]], repeats: int
) -> dict[str, Any]:
    ids = [[passage_id(number) for number in numbers] for numbers in drawn]
    fives = [[arrays[number] for number in numbers] for numbers in drawn]
    out = np.zeros(size.numbers, np.float32)

    def numpy() -> None:
        for five in fives:
            for atom in five:
                np.add(out, atom, out=out)

    def ours() -> None:
        for five in ids:
            reader.sum(five)

    seconds = in_turn({"numpy": numpy, "ours": ours}, repeats, torch.device("cpu"))
    micros = {way: 1e6 * value / len(drawn) for way, value in seconds.items()}
    ratio = micros["numpy"] / micros["ours"]
    return {"atom": size.name, "atoms": name, "numpy us": micros["numpy"], "reader us": micros["ours"], "ratio": ratio}
