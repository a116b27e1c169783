"""Job: write questions for a corpus. Ray Data streams it through a pool of writers; each block of passages is a part.

ray job submit -- python -m ray_jobs.synthesize --config configs/jobs/synth-lab.yaml
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any

from ray_jobs.cluster import cluster, job_main, model_devices, require_model, require_workers, run_task
from ray_jobs.corpus_blocks import check_corpus
from ray_jobs.parts import RecordActor, part_records, write_parts
from ray_jobs.progress import progress_channel
from ray_jobs.waiting import wait_for_room
from regrad.data.jsonl import encode_jsonl
from regrad.data.passages import Passage
from regrad.errors import SynthesisError
from regrad.models.loading import load_language_model
from regrad.retrieval.base import check_index, open_retriever
from regrad.storage import Storage, check_replaceable, directory_writer, parts_uri
from regrad.training.synthesis.config import SynthesisConfig
from regrad.training.synthesis.tasks import Hits, make_tasks, select_pairs, synthesis_report
from regrad.training.synthesis.writer import Draft, PairWriter, draft_of, read_line

TASKS, REJECTED, REPORT = "tasks.jsonl", "rejected.jsonl", "report.json"
_SEARCHES_PER_LINE = 5000


class PartWriter(RecordActor):
    """Writes drafts, one a line."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._config = SynthesisConfig.model_validate(settings)
        self.batch = f"{self._config.batch_passages} passages with {self._config.candidates} candidates each"
        super().__init__(self._config.output)

    @property
    def key(self) -> str:
        """See `RecordActor`."""
        return self._writer.key

    def records(self, lines: list[bytes], problems: list[str]) -> Iterator[dict[str, Any]]:
        """See `RecordActor`."""
        read = [read_line(line, problem) for line, problem in zip(lines, problems, strict=True)]
        written = iter(self._writer.write([item for item in read if isinstance(item, Passage)]))
        for item in read:
            yield (next(written) if isinstance(item, Passage) else item).to_record()

    def questions(self, record: dict[str, Any]) -> int:
        """See `RecordActor`: the pairs that were kept."""
        return len(record["pairs"])

    @cached_property
    def _writer(self) -> PairWriter:
        """Created on first use, which is in the actor: it loads the model."""
        return PairWriter(load_language_model(self._config.model, model_devices()), self._config)


def run(config: SynthesisConfig) -> str:
    """Write `config.output`; returns one line saying what was made and where.

    Raises `SynthesisError` if no pair was kept; what was rejected, and why, is written even then.
    """
    started = time.time()
    check_replaceable(config.output, REPORT)
    check_corpus(config.corpus)
    if config.index is not None:
        check_index(config.index)
    require_model(config.model.path)
    with cluster(), progress_channel() as progress:
        require_workers(config.cluster)
        wait_for_room(config.cluster)
        names = run_task(write_parts, PartWriter, config, config.corpus, config.max_passages, progress)
        summary = run_task(_assemble, config, names, progress, started, num_cpus=1)
    Storage(parts_uri(config.output)).remove()
    return _describe(summary, config.output)


def _assemble(config: SynthesisConfig, names: list[str], progress: Any, started: float) -> dict[str, Any]:
    parts = Storage(parts_uri(config.output))
    drafts = [draft for name in names for draft in map(draft_of, part_records(parts, name))]
    hits = None if config.index is None else _search(config.index, drafts, config, progress)
    drafts = select_pairs(drafts, config, hits)
    records = list(make_tasks(drafts, config, hits))
    summary = synthesis_report(drafts, len(records), time.time() - started)
    rejected = [{"id": draft.passage.id, **asdict(item)} for draft in drafts for item in draft.rejected]
    with directory_writer(config.output, REPORT) as folder:
        (folder / TASKS).write_bytes(encode_jsonl(records))
        (folder / REJECTED).write_bytes(encode_jsonl(rejected))
        (folder / REPORT).write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _search(index: str, drafts: list[Draft], config: SynthesisConfig, progress: Any) -> Hits:
    k = max(config.near_hits, config.max_rank)
    questions = list(dict.fromkeys(pair.question for draft in drafts for pair in draft.pairs))
    hits: dict[str, list[str]] = {}
    with open_retriever(index) as retriever:
        for start in range(0, len(questions), _SEARCHES_PER_LINE):
            some = questions[start : start + _SEARCHES_PER_LINE]
            found = retriever.search_ids(some, k)
            hits.update((q, [passage_id for passage_id, _ in one]) for q, one in zip(some, found, strict=True))
            progress.push.remote(f"{len(hits)} questions searched")
    return hits


def _describe(summary: dict[str, Any], output: str) -> str:
    if not summary["tasks"]:
        reasons = summary["rejected"] or {"the corpus is empty": 0}
        often = max(reasons, key=lambda reason: reasons[reason])
        raise SynthesisError(
            f"no question was kept of {summary['candidates']} for {summary['passages']} passages; the most frequent "
            f"reason is '{often}': see {output}/{REJECTED}",
            code="nothing_kept",
            candidates=summary["candidates"],
            passages=summary["passages"],
            reason=often,
        )
    return (
        f"tasks at {output}: {summary['tasks']} tasks, {summary['kept']} questions (of {summary['candidates']} "
        f"candidates) for {summary['passages_with_questions']} of {summary['passages']} passages"
    )


if __name__ == "__main__":
    job_main(SynthesisConfig, run, __doc__ or "")
