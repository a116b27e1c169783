"""Job: fill a Gradient Bank. Ray Data streams the corpus through a pool of extractor actors that write the shards.

ray job submit -- python -m ray_jobs.build_bank --config configs/jobs/build-lab.yaml

Interrupted at any point, the same command continues: blocks that are done have a receipt in the bank.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_jobs.bank_actors import BlockActor, GradientActor
from ray_jobs.cluster import cluster, job_main, require_model, require_workers, run_task
from ray_jobs.corpus_blocks import actor_pool, blocks_of_lines, check_corpus, decode_error
from ray_jobs.progress import progress_bar, progress_channel
from ray_jobs.waiting import wait_for_room
from regrad.bank.builder import BUILT, Preparation, assemble, changes_nothing, note_preparation
from regrad.bank.config import BuildConfig
from regrad.bank.format import Layout, Manifest, check_same_layout, current_version, read_manifest
from regrad.bank.writer import commit, commit_onto_newest
from regrad.data.files import corpus_files
from regrad.meta_init import read_card
from regrad.storage import Storage
from regrad.text import readable_size
from regrad.training.lora.config import AdaptersConfig

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_REPORTS = 0.5
_TAKEN = ["read_bytes", "computed", "seconds", "node"]
"""The columns that say what a block took."""


@dataclass(frozen=True)
class Built:
    """The current version of the bank after a build, and the number of passages that could not be used.

    `nodes` are the passages that each node has computed, by its name.
    """

    manifest: Manifest
    refused: int
    nodes: dict[str, int]


def run(config: BuildConfig) -> str:
    """Build and commit one version of the bank; returns one line saying what was made and where."""
    return describe(build(config).manifest, config.bank.uri)


def describe(manifest: Manifest, uri: str) -> str:
    """One line about a version of a bank."""
    size = readable_size(manifest.passages * manifest.record_bytes)
    bad = f", {manifest.quarantined} quarantined (regrad bank info --quarantine)" if manifest.quarantined else ""
    return (
        f"bank version {manifest.label} at {uri}: {manifest.passages} passages{bad}, "
        f"{manifest.codec}, {manifest.record_bytes} bytes an atom, {size}"
    )


def build(config: BuildConfig, add: bool = False) -> Built:
    """As `run`, returning what was built; with `add`, the bank keeps passages that are not in this corpus.

    Passages that the bank already has with the same text are not computed again. If nothing has changed, the manifest
    is that of the current version.
    """
    card = read_card(config.meta_init)
    require_model(config.model_path or card["model"]["path"])
    layout = Layout(fingerprint=card["fingerprint"], codec=config.bank.codec, subspace=card["subspace"])
    return fill(config, layout, GradientActor, add)


def fill(
    config: BuildConfig | AdaptersConfig, layout: Layout, actor: type[BlockActor], add: bool = False, keep: bool = True
) -> Built:
    """Fill the bank with what the actor makes of each passage; without `keep`, all of them are computed again."""
    storage = Storage(config.bank.uri)
    base = read_manifest(storage) if current_version(storage) else None
    if base and add:
        check_same_layout(base.layout, layout, storage.uri)
    check_corpus(config.corpus)
    total = sum(file.bytes for file in corpus_files(config.corpus))
    with cluster():
        require_workers(config.cluster)
        wait_for_room(config.cluster)
        with progress_bar(total) as show, progress_channel(show) as progress:
            manifest, refused, nodes = run_task(_fill, config, layout, actor, base, add, keep, progress)
    if len(nodes) > 1:
        logger.info("passages by node: %s", ", ".join(f"{name} {count}" for name, count in nodes.items()))
    return Built(Manifest.model_validate(manifest), refused, nodes)


def _fill(
    config: BuildConfig | AdaptersConfig,
    layout: Layout,
    actor: type[BlockActor],
    base: Manifest | None,
    add: bool,
    keep: bool,
    progress: Any,
) -> tuple[dict[str, Any], int, dict[str, int]]:
    """Compute all blocks, then commit; returns the manifest's content, the number of refused passages, and `nodes`."""
    storage = Storage(config.bank.uri)
    same = base if keep and base and base.layout == layout else None
    blocks = blocks_of_lines(config.corpus, config.bank.shard_passages)
    of_translator = (layout.translator,) if layout.translator else ()
    results = blocks.map_batches(
        actor,
        fn_constructor_args=(config.model_dump(mode="json"), same.version if same else None, *of_translator),
        batch_size=config.bank.shard_passages,
        batch_format="pyarrow",
        **actor_pool(config.cluster),
    )
    took: list[dict[str, Any]] = []
    built = pa.concat_tables([BUILT.empty_table(), *_collect(results, progress, took)])
    change = assemble(storage, built, same, whole=not add)
    if same and changes_nothing(storage, change, same):
        manifest = same
    elif add:
        manifest = commit_onto_newest(storage, layout, change)
    else:
        manifest = commit(storage, layout, change, base, fresh=same is None)
    noted = _preparation(took)
    if noted.passages:
        note_preparation(config.bank.uri, manifest.version, noted)
    for name in sorted(set(built["receipt"].drop_null().to_pylist())):
        storage.remove_file(name)
    return manifest.model_dump(mode="json"), len(change.quarantine), noted.nodes


def _preparation(blocks: Sequence[Mapping[str, Any]]) -> Preparation:
    """What the blocks took together."""
    nodes = Counter[str]()
    for block in blocks:
        nodes[block["node"]] += block["computed"]
    computed = {name: count for name, count in sorted(nodes.items()) if count}
    return Preparation(
        passages=sum(computed.values()), seconds=sum(block["seconds"] for block in blocks), nodes=computed
    )


def _collect(results: Any, progress: Any, blocks: list[dict[str, Any]]) -> Iterator[pa.Table]:
    """The tables of all blocks, and in `blocks` what each took; raises the first error that a worker reports."""
    count = read = 0
    reported = 0.0
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow"):
        for failure in batch["failure"].drop_null().to_pylist():
            raise decode_error(failure)
        done = batch.filter(batch["read_bytes"].is_valid()).select(_TAKEN).to_pylist()
        blocks += done
        rows = batch.select(BUILT.names).cast(BUILT)
        rows = rows.filter(rows["passage_id"].is_valid())
        count, read = count + len(rows), read + sum(block["read_bytes"] for block in done)
        if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            progress.push.remote((count, read))
        yield rows
    progress.push.remote((count, read))


if __name__ == "__main__":
    job_main(BuildConfig, run, __doc__ or "")
