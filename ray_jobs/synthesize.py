"""Job: write questions for a corpus. Ray Data streams it through a pool of writers, each block of passages one part.

Parts lie beside the output until the job is done, each under the hash of what it was made of: a job that is run again
after it was stopped makes only the parts that are missing.

ray job submit -- python -m ray_jobs.synthesize --config configs/jobs/synth-lab.yaml
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from ray_jobs.cluster import cluster, device, require_workers, run_task
from ray_jobs.corpus_blocks import actor_pool, blocks_of_lines, check_corpus
from ray_jobs.entry import main
from ray_jobs.progress import progress_channel
from regrad import errors
from regrad.data.passages import Passage
from regrad.errors import RegradError, SynthesisError
from regrad.models.loading import load_language_model
from regrad.retrieval.bm25 import LuceneRetriever, check_index
from regrad.storage import Storage, check_replaceable, directory_writer
from regrad.training.synthesis.config import SynthesisConfig
from regrad.training.synthesis.tasks import Hits, report, settle, tasks
from regrad.training.synthesis.writer import Draft, PairWriter, decode_drafts, encode_drafts, read_line

TASKS, REJECTED, REPORT = "tasks.jsonl", "rejected.jsonl", "report.json"
_SEARCHES_PER_LINE = 5000


class PartWriter:
    """An actor: a block of lines in, one part written unless it is there, its name and counts out."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._config = SynthesisConfig.model_validate(settings)
        self._parts = Storage(parts_uri(self._config))

    @cached_property
    def _writer(self) -> PairWriter:
        return PairWriter(load_language_model(self._config.model, device()), self._config)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row: the part's name, its passages, and the pairs that hold so far; or an error of ours, by name.

        Ray Data hands on that an actor failed, but not with what: so an error is a value.
        """
        row = {"name": "", "passages": 0, "pairs": 0, "made": False, "error": "", "message": ""}
        try:
            row |= self._part([bytes(line) for line in batch["line"]], batch["problem"].tolist())
        except RegradError as error:
            row |= {"error": type(error).__name__, "message": str(error)}
        except torch.OutOfMemoryError:
            rows = f"{self._config.batch_passages} passages with {self._config.candidates} candidates each"
            problem = f"the GPU's memory is too small for {rows} at once; lower batch_passages"
            row |= {"error": "SynthesisError", "message": problem}
        return {key: np.array([value]) for key, value in row.items()}

    def _part(self, lines: list[bytes], problems: list[str]) -> dict[str, Any]:
        made_of = [self._writer.key.encode(), *lines, *(problem.encode() for problem in problems)]
        name = sha256(b"\n".join(made_of)).hexdigest() + ".jsonl"
        made = not self._parts.exists(name)
        if made:
            self._parts.write(name, encode_drafts(self._drafts(lines, problems)))
        drafts = decode_drafts(self._parts.read(name))
        pairs = sum(len(draft.pairs) for draft in drafts)
        return {"name": name, "passages": len(drafts), "pairs": pairs, "made": made}

    def _drafts(self, lines: list[bytes], problems: list[str]) -> list[Draft]:
        read = [read_line(line, problem) for line, problem in zip(lines, problems, strict=True)]
        written = iter(self._writer.write([item for item in read if isinstance(item, Passage)]))
        return [next(written) if isinstance(item, Passage) else item for item in read]


def run(config: SynthesisConfig) -> str:
    """Write `config.output`; returns one line saying what was made and where.

    Raises `SynthesisError` if no pair was kept; what was rejected, and why, is written all the same.
    """
    started = time.time()
    check_replaceable(config.output, REPORT)
    check_corpus(config.corpus)
    if config.index is not None:
        check_index(config.index)
    with cluster(), progress_channel() as progress:
        require_workers(config.cluster)
        names = run_task(_write_parts, config, progress)
        summary = run_task(_assemble, config, names, progress, started, num_cpus=1)
    Storage(parts_uri(config)).remove()
    return _describe(summary, config.output)


def parts_uri(config: SynthesisConfig) -> str:
    """Where finished parts wait for the rest."""
    parent, _, name = config.output.rpartition("/")
    return f"{parent}/.{name}.parts"


def _write_parts(config: SynthesisConfig, progress: Any) -> list[str]:
    """The names of all parts, in the order of the corpus."""
    blocks = blocks_of_lines(config.corpus, config.part_passages, config.max_passages)
    results = blocks.map_batches(
        PartWriter,
        fn_constructor_args=(config.model_dump(mode="json"),),
        batch_size=config.part_passages,
        **actor_pool(config.cluster),
    )
    return list(_collect(results, progress))


def _collect(results: Any, progress: Any) -> Iterator[str]:
    started, passages, pairs, made = time.monotonic(), 0, 0, 0
    for row in results.iter_rows():
        if row["error"]:
            raise getattr(errors, str(row["error"]))(str(row["message"]))
        passages, pairs = passages + int(row["passages"]), pairs + int(row["pairs"])
        made += int(row["passages"]) if row["made"] else 0
        rate = made / (time.monotonic() - started)
        found = f", {passages - made} of them by an earlier run" if made < passages else ""
        progress.push.remote(f"{passages} passages{found}, {pairs} questions hold, {rate:.1f} passages/s")
        yield str(row["name"])


def _assemble(config: SynthesisConfig, names: list[str], progress: Any, started: float) -> dict[str, Any]:
    parts = Storage(parts_uri(config))
    drafts = [draft for name in names for draft in decode_drafts(parts.read(name))]
    hits = None if config.index is None else _search(config.index, drafts, config, progress)
    settled = settle(drafts, config, hits)
    records = list(tasks(settled, config, hits))
    summary = report(settled, len(records), time.time() - started)
    rejected = [{"id": draft.passage.id, **asdict(item)} for draft in settled for item in draft.rejected]
    with directory_writer(config.output, REPORT) as folder:
        (folder / TASKS).write_bytes(_jsonl(records))
        (folder / REJECTED).write_bytes(_jsonl(rejected))
        (folder / REPORT).write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _search(index: str, drafts: list[Draft], config: SynthesisConfig, progress: Any) -> Hits:
    retriever, k = LuceneRetriever(index), max(config.near_hits, config.max_rank)
    hits: dict[str, list[str]] = {}
    for question in dict.fromkeys(pair.question for draft in drafts for pair in draft.pairs):
        hits[question] = [hit.passage.id for hit in retriever.search(question, k)]
        if len(hits) % _SEARCHES_PER_LINE == 0:
            progress.push.remote(f"{len(hits)} questions searched")
    return hits


def _jsonl(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def _describe(summary: dict[str, Any], output: str) -> str:
    if not summary["tasks"]:
        reasons = summary["rejected"] or {"the corpus is empty": 0}
        often = max(reasons, key=lambda reason: reasons[reason])
        raise SynthesisError(
            f"no question was kept of {summary['candidates']} for {summary['passages']} passages; the most frequent "
            f"reason is '{often}': see {output}/{REJECTED}"
        )
    return (
        f"tasks at {output}: {summary['tasks']} tasks, {summary['kept']} questions (of {summary['candidates']} "
        f"candidates) for {summary['passages_with_questions']} of {summary['passages']} passages"
    )


if __name__ == "__main__":
    main(SynthesisConfig, run, __doc__ or "")
