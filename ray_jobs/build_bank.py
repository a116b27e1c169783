"""Job: fill a Gradient Bank. Ray Data streams the corpus through a pool of extractor actors that write the shards.

ray job submit -- python -m ray_jobs.build_bank --config configs/jobs/build-lab.yaml
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch

from ray_jobs.cluster import cluster, device, require_workers, run_task
from ray_jobs.entry import main
from ray_jobs.lines import actor_pool, blocks_of_lines, check_corpus
from ray_jobs.progress import progress_channel
from regrad.atoms.extractor import AtomExtractor
from regrad.bank.codecs import codec_for
from regrad.bank.manifest import Manifest
from regrad.bank.writer import IndexRow, commit, write_shard
from regrad.config import BuildConfig
from regrad.corpus import Passage, parse_passage, shown
from regrad.errors import CorpusError
from regrad.language_model.loading import load_language_model
from regrad.meta_init import MetaInit
from regrad.storage import Storage


class ShardWriter:
    """An actor: lines of the corpus in, one shard written, its index rows out."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._config = BuildConfig.model_validate(settings)
        self._storage = Storage(self._config.bank.uri)
        meta_init = MetaInit.load(self._config.meta_init)
        self._codec = codec_for(self._config.bank.codec, meta_init.subspace)
        lm = load_language_model(meta_init.model_at(self._config.model_path), device())
        self._extractor = AtomExtractor(lm, meta_init, self._config.batch_tokens, self._config.max_passage_tokens)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Index rows, as columns, of the atoms written and of the passages that have none."""
        passages, rows = _parse([bytes(line) for line in batch["line"]], batch["problem"].tolist())
        extracted = self._extractor.extract(passages)
        good = [item for item in extracted if item.atom is not None]
        rows += [IndexRow(e.passage.id, e.passage.text_hash, reason=e.problem) for e in extracted if e.atom is None]
        if good:
            atoms = torch.stack([item.atom for item in good if item.atom is not None])
            rows += write_shard(self._storage, self._codec, [item.passage for item in good], atoms)
        return _columns(rows)


def run(config: BuildConfig) -> str:
    """Build and commit one version of the bank; returns one line saying what was made and where."""
    return describe(build(config), config.bank.uri)


def describe(manifest: Manifest, uri: str) -> str:
    """One line about a version of a bank."""
    megabytes = manifest.passages * manifest.record_bytes / 1e6
    bad = f", {manifest.quarantined} quarantined" if manifest.quarantined else ""
    return (
        f"bank version {manifest.label} at {uri}: {manifest.passages} passages{bad}, "
        f"{manifest.codec}, {manifest.record_bytes} bytes an atom, {megabytes:.1f} MB"
    )


def build(config: BuildConfig) -> Manifest:
    """The same, returning the manifest."""
    meta_init = MetaInit.load(config.meta_init)
    check_corpus(config.corpus)
    with cluster(), progress_channel() as progress:
        require_workers(config.cluster)
        rows = run_task(_extract, config, progress)
    return commit(Storage(config.bank.uri), meta_init.fingerprint, config.bank.codec, meta_init.subspace, rows)


def _extract(config: BuildConfig, progress: Any) -> list[IndexRow]:
    """Write all shards; a shard holds the same passages whatever the workers."""
    shards = blocks_of_lines(config.corpus, config.bank.shard_passages)
    results = shards.map_batches(
        ShardWriter,
        fn_constructor_args=(config.model_dump(mode="json"),),
        batch_size=config.bank.shard_passages,
        **actor_pool(config.cluster),
    )
    return list(_collect(results, progress))


def _collect(results: Any, progress: Any) -> Iterator[IndexRow]:
    started, count = time.monotonic(), 0
    for batch in results.iter_batches(batch_size=None, batch_format="numpy"):
        names = [field.name for field in fields(IndexRow)]
        for values in zip(*(batch[name].tolist() for name in names), strict=True):
            count += 1
            yield IndexRow(**dict(zip(names, values, strict=True)))
        rate = count / (time.monotonic() - started)
        progress.push.remote(f"{count} passages, {rate:.0f} passages/s")


def _parse(lines: list[bytes], problems: list[str]) -> tuple[list[Passage], list[IndexRow]]:
    passages: list[Passage] = []
    bad: list[IndexRow] = []
    for line, problem in zip(lines, problems, strict=True):
        try:
            passages.append(parse_passage(line, problem))
        except CorpusError as error:
            bad.append(IndexRow(shown(line), "", reason=f"not a passage: {error}"))
    return passages, bad


def _columns(rows: list[IndexRow]) -> dict[str, np.ndarray]:
    records = [asdict(row) for row in rows]
    return {field.name: np.array([record[field.name] for record in records]) for field in fields(IndexRow)}


if __name__ == "__main__":
    main(BuildConfig, run, __doc__ or "")
