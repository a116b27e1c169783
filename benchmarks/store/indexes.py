"""How opening a bank, finding a passage, and what that takes in memory grow with the number of passages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import in_turn

from regrad.bank.format import read_manifest
from regrad.bank.index import Catalog
from regrad.bank.reader import BankReader
from regrad.storage import Storage
from store.atoms import passage_id, percentiles

_LOOKUPS = 10_000
_ROUNDS = 5


def index_rows(folder: Path, counts: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each number of passages. Opening and finding are measured in turn."""
    uris = {count: str(folder / str(count)) for count in counts}
    made = {count: _child("store.index_alone", uri, count) for count, uri in uris.items()}
    opened = in_turn({str(n): lambda uri=uri: BankReader(uri) for n, uri in uris.items()}, 50, torch.device("cpu"))
    found = _find(uris)
    grown = {count: _child("store.resident", uri, _LOOKUPS) for count, uri in uris.items()}
    return [
        {
            "passages": count,
            "publish s": made[count]["seconds"],
            "index MB": made[count]["index"] / 1e6,
            "peak MB more": (made[count]["peak"] - made[count]["before"]) / 1e6,
            "bytes a passage": made[count]["lookup"] / count,
            "open ms": 1e3 * opened[str(count)],
            "find p50 us": 1e3 * found[count][0],
            "find p99 us": 1e3 * found[count][1],
            "own MB more": grown[count]["own"] / 1e6,
            "mapped MB more": grown[count]["mapped"] / 1e6,
        }
        for count in counts
    ]


def _child(module: str, uri: str, number: int) -> dict[str, float]:
    """What a module prints in a process of its own."""
    command = [sys.executable, "-m", module, uri, str(number)]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(result.stdout)
    return found


def _find(uris: dict[int, str]) -> dict[int, tuple[float, float]]:
    """p50 and p99 of finding a random passage that nobody remembers: the medians of rounds taken in turn."""
    catalogs = {count: _catalog(uri) for count, uri in uris.items()}
    rounds: dict[int, list[tuple[float, float]]] = {count: [] for count in uris}
    for seed in range(_ROUNDS):
        for count, catalog in catalogs.items():
            numbers = np.random.default_rng(seed).integers(0, count, (_LOOKUPS // _ROUNDS, 1)).tolist()
            rounds[count].append(percentiles(lambda one, c=catalog: c.find(passage_id(one[0])), numbers))
    return {
        count: (float(np.median([r[0] for r in times])), float(np.median([r[1] for r in times])))
        for count, times in rounds.items()
    }


def _catalog(uri: str) -> Catalog:
    manifest = read_manifest(Storage(uri))
    return Catalog(Storage(uri), manifest.parts, manifest.record_bytes)
