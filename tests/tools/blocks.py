"""Blocks of a corpus as Ray Data hands them to actors, and what these give back, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from ray_jobs.parts import PartActor
from regrad.data.corpora import read_raw
from regrad.data.files import corpus_files
from regrad.settings import WorkersConfig

SILENT = SimpleNamespace(push=SimpleNamespace(remote=lambda item: None))
"""For an actor that progress is pushed to."""


def batch_of(lines: Sequence[bytes]) -> dict[str, np.ndarray]:
    """A block of lines without problems."""
    counted = np.array([len(line) for line in lines])
    return {"line": np.array(lines, object), "problem": np.array([""] * len(lines)), "read_bytes": counted}


def row_of(made: dict[str, np.ndarray]) -> dict[str, Any]:
    """The one row that an actor gives for a block."""
    return {name: values[0] for name, values in made.items()}


def part_rows_here(
    actor: type[PartActor], arguments: tuple[Any, ...], corpus: str, size: int, workers: WorkersConfig
) -> Iterator[dict[str, Any]]:
    """As `ray_jobs.parts.part_rows`, by actors in this process in turn."""
    pool = [actor(*arguments) for _ in range(workers.workers)]
    lines = [record.line for file in corpus_files(corpus) for record in read_raw(file.uri)]
    for number, start in enumerate(range(0, len(lines), size)):
        yield row_of(pool[number % len(pool)](batch_of(lines[start : start + size])))
