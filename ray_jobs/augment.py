"""Job: rewrite passages and ask about them, by the model itself, with Ray Data; or take what somebody has made already.

Parts lie beside the output until the job is done, each under the hash of what it was made of: a job that is run again
after it was stopped makes only the parts that are missing.

ray job submit -- python -m ray_jobs.augment --config configs/jobs/augment-lab.yaml
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from ray_jobs.bank_actors import error_of
from ray_jobs.cluster import cluster, device, require_workers, run_task
from ray_jobs.corpus_blocks import actor_pool, blocks_of_lines, check_corpus
from ray_jobs.entry import main
from ray_jobs.progress import progress_channel
from regrad.data.augmented import AUGMENTED, Augmented, encode_augmented, from_tasks, read_ready
from regrad.data.passages import Passage, parse_passage, shown
from regrad.errors import CorpusError, RegradError, SynthesisError
from regrad.models.loading import load_language_model
from regrad.storage import Storage, check_replaceable, directory_writer
from regrad.training.lora.augmenter import Augmenter, Outcome
from regrad.training.lora.config import AugmentConfig
from regrad.training.meta.task_files import read_tasks

FAILED, REPORT = "failed.jsonl", "report.json"


class PartAugmenter:
    """An actor: a block of lines in, one part written unless it is there, its name and counts out."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._config = AugmentConfig.model_validate(settings)
        self._parts = Storage(parts_uri(self._config))

    @cached_property
    def _augmenter(self) -> Augmenter:
        assert self._config.model is not None
        return Augmenter(load_language_model(self._config.model, device()), self._config)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row; an error of ours comes as data, as Ray Data would hand on only that there was one."""
        row = {"name": "", "passages": 0, "failure": ""}
        try:
            row |= self._part([bytes(line) for line in batch["line"]], batch["problem"].tolist())
        except RegradError as error:
            row |= {"failure": f"{type(error).__name__}: {error}"}
        return {key: np.array([value]) for key, value in row.items()}

    def _part(self, lines: list[bytes], problems: list[str]) -> dict[str, Any]:
        made_of = [self._augmenter.key.encode(), *lines, *(problem.encode() for problem in problems)]
        name = sha256(b"\n".join(made_of)).hexdigest() + ".jsonl"
        if not self._parts.exists(name):
            self._parts.write(name, _jsonl(self._records(lines, problems)))
        return {"name": name, "passages": len(lines)}

    def _records(self, lines: list[bytes], problems: list[str]) -> list[dict[str, Any]]:
        passages: list[Passage] = []
        bad: list[dict[str, Any]] = []
        for line, problem in zip(lines, problems, strict=True):
            try:
                passages.append(parse_passage(line, problem))
            except CorpusError as error:
                bad.append({"failed": {"id": shown(line), "reason": f"not a passage: {error}"}})
        return bad + [_record(outcome) for outcome in self._augmenter.write(passages)]


def run(config: AugmentConfig) -> str:
    """Write `config.output`; returns one line saying what was made and where.

    Raises `SynthesisError` if no passage got questions; what failed, and why, is written all the same.
    """
    check_replaceable(config.output, REPORT)
    if config.corpus is not None:
        check_corpus(config.corpus)
        with cluster(), progress_channel() as progress:
            require_workers(config.cluster)
            names = run_task(_write_parts, config, progress)
        records = [json.loads(line) for name in names for line in _lines(config, name)]
    else:
        records = list(_ready(config))
    summary = _assemble(config, records)
    Storage(parts_uri(config)).remove()
    return _describe(summary, config.output)


def parts_uri(config: AugmentConfig) -> str:
    """Where finished parts wait for the rest."""
    parent, _, name = config.output.rpartition("/")
    return f"{parent}/.{name}.parts"


def _write_parts(config: AugmentConfig, progress: Any) -> list[str]:
    """The names of all parts, in the order of the corpus."""
    blocks = blocks_of_lines(config.corpus or "", config.part_passages)
    results = blocks.map_batches(
        PartAugmenter,
        fn_constructor_args=(config.model_dump(mode="json"),),
        batch_size=config.part_passages,
        **actor_pool(config.cluster),
    )
    names, passages = [], 0
    for row in results.iter_rows():
        if row["failure"]:
            raise error_of(str(row["failure"]))
        names.append(str(row["name"]))
        passages += int(row["passages"])
        progress.push.remote(f"{passages} passages")
    return names


def _lines(config: AugmentConfig, name: str) -> list[bytes]:
    return [line for line in Storage(parts_uri(config)).read(name).split(b"\n") if line]


def _ready(config: AugmentConfig) -> Iterator[dict[str, Any]]:
    if config.tasks is not None:
        yield from (_record(Outcome(item.passage, item)) for item in from_tasks(read_tasks(config.tasks), config.pairs))
        return
    for where, found in read_ready(config.ready or ""):
        if isinstance(found, CorpusError):
            yield {"failed": {"id": where, "reason": str(found)}}
        else:
            yield _record(Outcome(found.passage, Augmented(found.passage, found.rewrites, found.pairs[: config.pairs])))


def _record(outcome: Outcome) -> dict[str, Any]:
    """What was written, and what is to be said about it."""
    told = {"id": outcome.passage.id, "reason": outcome.reason, "detail": outcome.detail, "tries": outcome.tries}
    made = {"augmented": outcome.augmented.to_record()} if outcome.augmented else {}
    return made | ({"failed": told} if outcome.reason else {})


def _assemble(config: AugmentConfig, records: list[dict[str, Any]]) -> dict[str, Any]:
    """One record a passage id: the first. A passage that only lacks a rewrite is in both files."""
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
        (folder / FAILED).write_bytes(_jsonl(failed))
        (folder / REPORT).write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _jsonl(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def _describe(summary: dict[str, Any], output: str) -> str:
    if not summary["augmented"]:
        often = next(iter(summary["failed"]), "there is no passage")
        raise SynthesisError(
            f"no passage of {summary['passages']} got questions; the most frequent reason is '{often}': see "
            f"{output}/{FAILED}"
        )
    return (
        f"augmented passages at {output}: {summary['augmented']} of {summary['passages']}, with {summary['pairs']} "
        f"questions and {summary['rewrites']} other wordings"
    )


if __name__ == "__main__":
    main(AugmentConfig, run, __doc__ or "")
