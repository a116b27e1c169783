"""A corpus through a pool of actors into parts, a file for each block of passages.

Parts lie beside the output until the job is done, each under the hash of what it was made of: a job that is run again
after it was stopped makes only the parts that are missing.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from ray_jobs.actor_errors import decode_error, encode_error
from ray_jobs.corpus_blocks import actor_pool, blocks_of_lines
from regrad.data.jsonl import encode_jsonl, parse_jsonl
from regrad.errors import RegradError, SynthesisError
from regrad.storage import Storage
from regrad.training.lora.config import AugmentConfig
from regrad.training.synthesis.config import SynthesisConfig


class PartActor(ABC):
    """An actor: a block of lines in, one part written unless it is there, its name and counts out."""

    batch: str
    """What is decoded together, with its size: of which a GPU's memory may hold too little."""

    def __init__(self, output: str) -> None:
        self._parts = Storage(parts_uri(output))

    @property
    @abstractmethod
    def key(self) -> str:
        """All that a part depends on beside its lines."""

    @abstractmethod
    def records(self, lines: list[bytes], problems: list[str]) -> Iterable[dict[str, Any]]:
        """What is written of the lines, each with a problem or none (empty)."""

    @abstractmethod
    def questions(self, record: dict[str, Any]) -> int:
        """How many questions one of these records holds."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row: the part's name, whether it was made now, and what it holds; or an error of ours as data."""
        row = {"name": "", "passages": 0, "questions": 0, "made": False, "failure": ""}
        try:
            row |= self._part([bytes(line) for line in batch["line"]], batch["problem"].tolist())
        except (RegradError, OSError) as error:
            row["failure"] = encode_error(error)
        except torch.OutOfMemoryError:
            problem = f"the GPU's memory is too small for {self.batch} at once; lower batch_passages"
            row["failure"] = encode_error(SynthesisError(problem))
        return {key: np.array([value]) for key, value in row.items()}

    def _part(self, lines: list[bytes], problems: list[str]) -> dict[str, Any]:
        made_of = [self.key.encode(), *lines, *(problem.encode() for problem in problems)]
        name = sha256(b"\n".join(made_of)).hexdigest() + ".jsonl"
        made = not self._parts.exists(name)
        if made:
            self._parts.write(name, encode_jsonl(self.records(lines, problems)))
        questions = sum(map(self.questions, read_part(self._parts, name)))
        return {"name": name, "passages": len(lines), "questions": questions, "made": made}


def parts_uri(output: str) -> str:
    """Where finished parts of an output wait for the rest."""
    parent, _, name = output.rpartition("/")
    return f"{parent}/.{name}.parts"


def read_part(parts: Storage, name: str) -> list[dict[str, Any]]:
    """The records of one part."""
    return [record for _, record in parse_jsonl(parts.read(name), f"{parts.uri}/{name}")]


def write_parts(
    actor: type[PartActor],
    config: AugmentConfig | SynthesisConfig,
    corpus: str,
    limit: int | None,
    progress: Any,
) -> list[str]:
    """Make the parts of the first `limit` lines of a corpus that are missing; the names of all, in its order."""
    results = blocks_of_lines(corpus, config.part_passages, limit).map_batches(
        actor,
        fn_constructor_args=(config.model_dump(mode="json"),),
        batch_size=config.part_passages,
        **actor_pool(config.cluster),
    )
    return list(collect_parts(results.iter_rows(), progress))


def collect_parts(rows: Iterable[dict[str, Any]], progress: Any) -> Iterator[str]:
    """The names of the parts, telling `progress` of each; raises the first error that an actor reports."""
    started = time.monotonic()
    passages = questions = made = 0
    for row in rows:
        if row["failure"]:
            raise decode_error(str(row["failure"]))
        passages += int(row["passages"])
        questions += int(row["questions"])
        made += int(row["passages"]) if row["made"] else 0
        rate = made / (time.monotonic() - started)
        found = f", {passages - made} of them by an earlier run" if made < passages else ""
        progress.push.remote(f"{passages} passages{found}, {questions} questions, {rate:.1f} passages/s")
        yield str(row["name"])
