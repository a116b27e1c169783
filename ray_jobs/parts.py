"""A corpus through a pool of actors into parts, one file for each block of passages.

Parts lie beside the output until the job is done, each named by the hash of what it was made from: an interrupted job
that is run again makes only the missing parts.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from ray_jobs.corpus_blocks import actor_pool, blocks_of_lines, decode_error, encode_error
from regrad.data.jsonl import encode_jsonl, parse_jsonl
from regrad.errors import RegradError, SynthesisError
from regrad.storage import Storage
from regrad.training.lora.config import AugmentConfig
from regrad.training.synthesis.config import SynthesisConfig


class PartActor(ABC):
    """An actor: a block of lines in; one part written, unless it exists; its name and counts out."""

    batch: str
    """What is decoded at once, for the error of a GPU whose memory is too small for it."""

    def __init__(self, output: str) -> None:
        self._parts = Storage(parts_uri(output))

    @property
    @abstractmethod
    def key(self) -> str:
        """What a part depends on besides its lines."""

    @abstractmethod
    def records(self, lines: list[bytes], problems: list[str]) -> Iterable[dict[str, Any]]:
        """The records to write for the lines; a line's problem is empty if there is none."""

    @abstractmethod
    def questions(self, record: dict[str, Any]) -> int:
        """The number of questions in one of these records."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row: the part's name, whether it was made now, and its counts; or an error of ours as data."""
        row = {"name": "", "passages": 0, "questions": 0, "made": False, "failure": ""}
        try:
            row |= self._part([bytes(line) for line in batch["line"]], batch["problem"].tolist())
        except (RegradError, OSError) as error:
            row["failure"] = encode_error(error)
        except torch.OutOfMemoryError:
            problem = f"the GPU's memory is too small for {self.batch} at once; lower batch_passages"
            row["failure"] = encode_error(SynthesisError(problem, code="out_of_memory", batch=self.batch))
        return {key: np.array([value]) for key, value in row.items()}

    def _part(self, lines: list[bytes], problems: list[str]) -> dict[str, Any]:
        made_of = [self.key.encode(), *lines, *(problem.encode() for problem in problems)]
        name = sha256(b"\n".join(made_of)).hexdigest() + ".jsonl"
        made = not self._parts.exists(name)
        if made:
            self._parts.write(name, encode_jsonl(self.records(lines, problems)))
        questions = sum(map(self.questions, part_records(self._parts, name)))
        return {"name": name, "passages": len(lines), "questions": questions, "made": made}


def parts_uri(output: str) -> str:
    """Where the finished parts of an output are kept until the job is done."""
    parent, _, name = output.rpartition("/")
    return f"{parent}/.{name}.parts"


def part_records(parts: Storage, name: str) -> list[dict[str, Any]]:
    """The records of one part."""
    return [record for _, record in parse_jsonl(parts.read(name), f"{parts.uri}/{name}")]


def write_parts(
    actor: type[PartActor],
    config: AugmentConfig | SynthesisConfig,
    corpus: str,
    limit: int | None,
    progress: Any,
) -> list[str]:
    """Make the missing parts of the first `limit` lines of a corpus; returns the names of all parts in order."""
    results = blocks_of_lines(corpus, config.part_passages, limit).map_batches(
        actor,
        fn_constructor_args=(config.model_dump(mode="json"),),
        batch_size=config.part_passages,
        **actor_pool(config.cluster),
    )
    return list(collect_parts(results.iter_rows(), progress))


def collect_parts(rows: Iterable[dict[str, Any]], progress: Any) -> Iterator[str]:
    """The names of the parts, reporting each to `progress`; raises the first error that an actor reports."""
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
