"""Job: rewrite passages and write questions about them with the model itself, by Ray Data; or import existing ones.

ray job submit -- python -m ray_jobs.augment --config configs/jobs/augment-lab.yaml
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from ray_jobs.cluster import cluster, job_main, model_devices, require_model, require_workers, run_task
from ray_jobs.corpus_blocks import check_corpus
from ray_jobs.parts import RecordActor, part_records, write_parts
from ray_jobs.progress import progress_channel
from ray_jobs.waiting import wait_for_room
from regrad.data.augmented import AUGMENTED, Augmented, encode_augmented, from_tasks, read_ready
from regrad.data.jsonl import encode_jsonl, shown
from regrad.data.passages import Passage, parse_passage
from regrad.data.tasks import read_tasks
from regrad.errors import CorpusError, SynthesisError
from regrad.models.loading import load_language_model
from regrad.storage import Storage, check_replaceable, directory_writer, parts_uri
from regrad.training.lora.augmenter import Augmenter, AugmentOutcome
from regrad.training.lora.config import AugmentConfig

FAILED, REPORT = "failed.jsonl", "report.json"


class PartAugmenter(RecordActor):
    """Writes augmented passages and failures, one a line."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._config = AugmentConfig.model_validate(settings)
        self.batch = f"{self._config.batch_passages} passages"
        super().__init__(self._config.output)

    @property
    def key(self) -> str:
        """See `RecordActor`."""
        return self._augmenter.key

    def records(self, lines: list[bytes], problems: list[str]) -> list[dict[str, Any]]:
        """See `RecordActor`."""
        passages: list[Passage] = []
        bad: list[dict[str, Any]] = []
        for line, problem in zip(lines, problems, strict=True):
            try:
                passages.append(parse_passage(line, problem))
            except CorpusError as error:
                bad.append({"failed": {"id": shown(line), "reason": f"not a passage: {error}"}})
        return bad + [_record(outcome) for outcome in self._augmenter.write(passages)]

    def questions(self, record: dict[str, Any]) -> int:
        """See `RecordActor`."""
        return len(record["augmented"]["pairs"]) if "augmented" in record else 0

    @cached_property
    def _augmenter(self) -> Augmenter:
        """Created on first use, which is in the actor: it loads the model."""
        assert self._config.model is not None
        return Augmenter(load_language_model(self._config.model, model_devices()), self._config)


def run(config: AugmentConfig) -> str:
    """Write `config.output`; returns one line saying what was made and where.

    Raises `SynthesisError` if no passage got questions; failures and their reasons are written even then.
    """
    check_replaceable(config.output, REPORT)
    if config.corpus is not None:
        check_corpus(config.corpus)
        assert config.model is not None  # the settings require it
        require_model(config.model.path)
        with cluster(), progress_channel() as progress:
            require_workers(config.cluster)
            wait_for_room(config.cluster)
            names = run_task(write_parts, PartAugmenter, config, config.corpus, None, progress)
        parts = Storage(parts_uri(config.output))
        records = [record for name in names for record in part_records(parts, name)]
    else:
        records = list(_ready(config))
    summary = _assemble(config, records)
    Storage(parts_uri(config.output)).remove()
    return _describe(summary, config.output)


def _ready(config: AugmentConfig) -> Iterator[dict[str, Any]]:
    if config.tasks is not None:
        yield from (
            _record(AugmentOutcome(item.passage, item)) for item in from_tasks(read_tasks(config.tasks), config.pairs)
        )
        return
    for where, found in read_ready(config.import_from or ""):
        if isinstance(found, CorpusError):
            yield {"failed": {"id": where, "reason": str(found)}}
        else:
            yield _record(
                AugmentOutcome(found.passage, Augmented(found.passage, found.rewrites, found.pairs[: config.pairs]))
            )


def _record(outcome: AugmentOutcome) -> dict[str, Any]:
    """The augmented passage, and the reason if something failed; a passage that only lacks a rewrite has both."""
    record: dict[str, Any] = {}
    if outcome.augmented:
        record["augmented"] = outcome.augmented.to_record()
    if outcome.reason:
        record["failed"] = {
            "id": outcome.passage.id,
            "reason": outcome.reason,
            "detail": outcome.detail,
            "tries": outcome.tries,
        }
    return record


def _assemble(config: AugmentConfig, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the output, with the first record of each passage id; returns the summary."""
    made: dict[str, Augmented] = {}
    failed = [record["failed"] for record in records if "failed" in record]
    for record in records:
        if "augmented" in record:
            item = Augmented.from_record(record["augmented"])
            if made.setdefault(item.passage.id, item) is not item:
                failed.append({"id": item.passage.id, "reason": "duplicate id; the first passage with it is kept"})
    summary = {
        "passages": len(records),
        "augmented": len(made),
        "pairs": sum(len(item.pairs) for item in made.values()),
        "rewrites": sum(len(item.rewrites) for item in made.values()),
        "failed": dict(Counter(item["reason"].partition(":")[0] for item in failed).most_common()),
    }
    with directory_writer(config.output, REPORT) as folder:
        (folder / AUGMENTED).write_bytes(encode_augmented(made.values()))
        (folder / FAILED).write_bytes(encode_jsonl(failed))
        (folder / REPORT).write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _describe(summary: dict[str, Any], output: str) -> str:
    if not summary["augmented"]:
        often = next(iter(summary["failed"]), "there is no passage")
        raise SynthesisError(
            f"no passage of {summary['passages']} got questions; the most frequent reason is '{often}': see "
            f"{output}/{FAILED}",
            code="nothing_written",
            passages=summary["passages"],
            reason=often,
        )
    return (
        f"augmented passages at {output}: {summary['augmented']} of {summary['passages']}, with {summary['pairs']} "
        f"questions and {summary['rewrites']} other wordings"
    )


if __name__ == "__main__":
    job_main(AugmentConfig, run, __doc__ or "")
