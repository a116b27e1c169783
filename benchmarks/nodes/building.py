"""The job that builds a bank, on 1, 2 and 4 nodes, with workers that wait instead of computing: what the job adds.

On a machine with fewer cores than nodes only waiting can be done by all nodes at once.
"""

from __future__ import annotations

import json
import resource
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import torch
from store.atoms import AtomSize
from torch import Tensor

from nodes.simulated import simulated
from ray_jobs.bank_actors import BlockActor
from ray_jobs.build_bank import fill
from regrad.bank.config import BankConfig, BuildConfig
from regrad.data.passages import Passage, encode_passages
from regrad.settings import WorkersConfig

ATOM = AtomSize("4 KB", 1 << 10)
_WORDS = " ".join(["word"] * 100)
_DRIVER = "ray::_fill"


def waiting_actor(seconds_a_passage: float, notes: str) -> type[BlockActor]:
    """The job's actor with an extractor that waits, and notes in a folder when each of its blocks was at work."""

    class WaitingActor(BlockActor):
        def __init__(self, settings: dict[str, Any], base: int | None) -> None:
            super().__init__(BuildConfig.model_validate(settings).bank.uri, base)
            self._worker = uuid.uuid4().hex

        def settings(self) -> dict[str, Any]:
            return {"extractor": "waits"}

        def extract(self, passages: Sequence[Passage]) -> list[tuple[Tensor | None, str]]:
            started = time.time()
            time.sleep(seconds_a_passage * len(passages))
            note = {"worker": self._worker, "start": started, "end": time.time(), "passages": len(passages)}
            Path(notes, f"{uuid.uuid4().hex}.json").write_text(json.dumps(note))
            return [(_record(passage), "") for passage in passages]

    return WaitingActor


def _record(passage: Passage) -> Tensor:
    return torch.frombuffer(bytearray(sha256(passage.id.encode()).digest() * (ATOM.bytes // 32)), dtype=torch.uint8)


@dataclass(frozen=True)
class Job:
    """A build: its size, its workers and what it took."""

    passages: int
    workers: int
    seconds: float
    driver_cpu_seconds: float
    notes: Sequence[dict[str, Any]]

    @property
    def rate(self) -> float:
        """Passages a second from the first line to the commit, starting the workers included."""
        return self.passages / self.seconds

    @property
    def steady_rate(self) -> float:
        """Passages a second while all workers were at work: from the last one's first block to the first one's end."""
        starts: dict[str, float] = {}
        ends: dict[str, float] = {}
        for note in self.notes:
            worker = note["worker"]
            starts[worker] = min(starts.get(worker, note["start"]), note["start"])
            ends[worker] = max(ends.get(worker, note["end"]), note["end"])
        if len(starts) != self.workers:
            raise RuntimeError(f"{len(starts)} of {self.workers} workers had work; make the job longer")
        first, last = max(starts.values()), min(ends.values())
        shares = (
            max(0.0, min(last, note["end"]) - max(first, note["start"])) / (note["end"] - note["start"])
            for note in self.notes
        )
        return sum(s * note["passages"] for s, note in zip(shares, self.notes, strict=True)) / (last - first)


def build(folder: Path, passages: int, workers: int, seconds_a_passage: float, block: int) -> Job:
    """Run the job on the cluster that this process has joined."""
    place = folder / uuid.uuid4().hex
    (place / "notes").mkdir(parents=True)
    made = [Passage(f"passage-{number:08d}", "Title", f"{_WORDS} {number}") for number in range(passages)]
    (place / "corpus.jsonl").write_bytes(encode_passages(made))
    config = BuildConfig(
        meta_init="",
        corpus=f"{place}/corpus.jsonl",
        bank=BankConfig(uri=f"{place}/bank", shard_passages=block),
        cluster=WorkersConfig(workers=workers, gpu=False),
    )
    with _driver_seconds() as spent:
        started = time.perf_counter()
        built = fill(config, ATOM.layout, waiting_actor(seconds_a_passage, f"{place}/notes"))
        seconds = time.perf_counter() - started
    if built.manifest.passages != passages:
        raise RuntimeError(f"the bank has {built.manifest.passages} passages of {passages}")
    notes = [json.loads(path.read_text()) for path in (place / "notes").iterdir()]
    return Job(passages, workers, seconds, spent[0], notes)


@contextmanager
def _driver_seconds() -> Iterator[list[float]]:
    """Filled in at the end: what this process and the one that runs the job's pipeline and commit have computed."""
    spent, stop, before = [0.0], threading.Event(), _own_seconds()
    pipelines: dict[int, psutil.Process] = {}

    def watch() -> None:
        while not stop.wait(0.2):
            for child in psutil.Process().children(recursive=True):
                try:
                    if child.pid not in pipelines and _DRIVER in " ".join(child.cmdline()):
                        pipelines[child.pid] = child
                except psutil.Error:
                    continue

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield spent
    finally:
        stop.set()
        thread.join()
        if len(pipelines) != 1:
            raise RuntimeError(f"{len(pipelines)} processes ran the pipeline, and not one")
        spent[0] = _own_seconds() - before + sum(sum(child.cpu_times()[:2]) for child in pipelines.values())


def _own_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def scaling_rows(folder: Path, counts: Sequence[int], seconds: float, milliseconds: float) -> list[dict[str, Any]]:
    """A row for each number of nodes, each with as much work as the others: `seconds` of every worker's time."""
    rows: list[dict[str, Any]] = []
    block = max(1, round(1e3 / milliseconds))
    for count in counts:
        passages = count * round(1e3 * seconds / milliseconds)
        with simulated(count):
            job = build(folder, passages, count, milliseconds / 1e3, block)
        one = rows[0] if rows else {"passages/s": job.steady_rate, "whole job, passages/s": job.rate}
        rows.append(
            {
                "nodes": count,
                "passages": passages,
                "passages/s": job.steady_rate,
                "efficiency": job.steady_rate / (count * one["passages/s"]),
                "whole job, passages/s": job.rate,
                "whole job, efficiency": job.rate / (count * one["whole job, passages/s"]),
                "seconds": job.seconds,
                "driver CPU s": job.driver_cpu_seconds,
            }
        )
        print(rows[-1], flush=True)
    return rows


def coordinator_rows(folder: Path, sizes: Sequence[int], block: int) -> list[dict[str, Any]]:
    """A row for each number of passages, on one node whose worker does not wait at all."""
    rows = []
    with simulated(1):
        build(folder, block, 1, 0.0, block)  # what happens once, happens here
        for size in sizes:
            job = build(folder, size, 1, 0.0, block)
            rows.append({"passages": size, "seconds": job.seconds, "driver CPU s": job.driver_cpu_seconds})
            print(rows[-1], flush=True)
    return rows


def per_million(rows: Sequence[dict[str, Any]]) -> float:
    """Processor seconds of the driver for a million passages: by the difference of two sizes, without what is fixed."""
    few, many = rows[0], rows[-1]
    more = many["driver CPU s"] - few["driver CPU s"]
    return float(1e6 * more / (many["passages"] - few["passages"]))
