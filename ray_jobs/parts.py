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

from ray_jobs.corpus_blocks import actor_pool, blocks_of_lines, decode_error, encode_error
from regrad.data.jsonl import encode_jsonl, parse_jsonl
from regrad.errors import RegradError, SynthesisError
from regrad.settings import WorkersConfig
from regrad.storage import Storage, parts_uri
from regrad.training.lora.config import AugmentConfig
from regrad.training.synthesis.config import SynthesisConfig


class PartActor(ABC):
    """An actor: a block of lines in; one part written, unless it exists; its name and counts out."""

    def __init__(self, output: str) -> None:
        self.parts = Storage(parts_uri(output))

    @abstractmethod
    def part(self, lines: list[bytes], problems: list[str]) -> dict[str, Any]:
        """Write the part of these lines if it is not there; its `name`, whether it was `made`, and what is counted.

        A line's problem is empty if there is none.
        """

    @abstractmethod
    def out_of_memory(self) -> RegradError:
        """What to tell of a GPU whose memory is too small."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row: what `part` says, and how much of the corpus the block was; or an error of ours as data."""
        row = {"name": "", "passages": len(batch["line"]), "read_bytes": int(batch["read_bytes"].sum())}
        row |= {"made": False, "failure": ""}
        try:
            row |= self.part([bytes(line) for line in batch["line"]], batch["problem"].tolist())
        except (RegradError, OSError) as error:
            row["failure"] = encode_error(error)
        except RuntimeError as error:
            import torch  # not by those who read this module, most of whom need no model

            if not isinstance(error, torch.OutOfMemoryError):
                raise
            row["failure"] = encode_error(self.out_of_memory())
        return {key: np.array([value]) for key, value in row.items()}


class RecordActor(PartActor):
    """Parts of records, one a line, with questions in them."""

    batch: str
    """What is decoded at once, for the error of a GPU whose memory is too small for it."""

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

    def part(self, lines: list[bytes], problems: list[str]) -> dict[str, Any]:
        """See `PartActor`."""
        made_of = [self.key.encode(), *lines, *(problem.encode() for problem in problems)]
        name = sha256(b"\n".join(made_of)).hexdigest() + ".jsonl"
        made = not self.parts.exists(name)
        if made:
            self.parts.write(name, encode_jsonl(self.records(lines, problems)))
        return {"name": name, "questions": sum(map(self.questions, part_records(self.parts, name))), "made": made}

    def out_of_memory(self) -> RegradError:
        """See `PartActor`."""
        problem = f"the GPU's memory is too small for {self.batch} at once; lower batch_passages"
        return SynthesisError(problem, code="out_of_memory", batch=self.batch)


def part_records(parts: Storage, name: str) -> list[dict[str, Any]]:
    """The records of one part."""
    return [record for _, record in parse_jsonl(parts.read(name), f"{parts.uri}/{name}")]


def write_parts(
    actor: type[RecordActor],
    config: AugmentConfig | SynthesisConfig,
    corpus: str,
    limit: int | None,
    progress: Any,
) -> list[str]:
    """Make the missing parts of the first `limit` lines of a corpus; returns the names of all parts in order."""
    rows = part_rows(actor, (config.model_dump(mode="json"),), corpus, config.part_passages, config.cluster, limit)
    return list(collect_parts(rows, progress))


def part_rows(
    actor: type[PartActor],
    arguments: tuple[Any, ...],
    corpus: str,
    size: int,
    workers: WorkersConfig,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """What a pool of these actors says of each part of `size` lines, in the order of the corpus."""
    rows: Iterator[dict[str, Any]] = (
        blocks_of_lines(corpus, size, limit)
        .map_batches(actor, fn_constructor_args=arguments, batch_size=size, **actor_pool(workers))
        .iter_rows()
    )
    return rows


def finished(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows; raises the first error that an actor reports."""
    for row in rows:
        if row["failure"]:
            raise decode_error(str(row["failure"]))
        yield row


def collect_parts(rows: Iterable[dict[str, Any]], progress: Any) -> Iterator[str]:
    """The names of the parts, reporting each to `progress`; raises the first error that an actor reports."""
    started = time.monotonic()
    passages = questions = made = 0
    for row in finished(rows):
        passages += int(row["passages"])
        questions += int(row["questions"])
        made += int(row["passages"]) if row["made"] else 0
        rate = made / (time.monotonic() - started)
        found = f", {passages - made} of them by an earlier run" if made < passages else ""
        progress.push.remote(f"{passages} passages{found}, {questions} questions, {rate:.1f} passages/s")
        yield str(row["name"])
