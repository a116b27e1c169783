"""A dense index by a pool of actors with a replica of the encoder each: blocks of passages in, parts of vectors out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any, TypeVar

from ray_jobs.cluster import cluster, device, require_workers, run_task
from ray_jobs.parts import PartActor, finished, part_rows
from ray_jobs.progress import progress_bar, progress_channel
from ray_jobs.waiting import wait_for_room
from regrad.data.corpora import read_passages
from regrad.data.files import corpus_files
from regrad.data.passages import Passage, parse_passage
from regrad.errors import RegradError, RetrievalError
from regrad.retrieval.base import CARD
from regrad.retrieval.config import EncoderConfig, IndexConfig
from regrad.retrieval.dense import write_dense_index
from regrad.retrieval.embedding import EncoderIdentity, Vectors, embed, encode_part, has_part, part_name, read_part
from regrad.retrieval.encoder import Encoder
from regrad.settings import WorkersConfig
from regrad.storage import Storage, check_replaceable, parts_uri

T = TypeVar("T")

logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_REPORTS = 0.5
_CHECKED_A_LINE = 100_000


class EmbeddingActor(PartActor):
    """Writes the vectors of each block that it is given, unless they are there."""

    def __init__(self, output: str, encoder: dict[str, Any], digest: str, dimensions: int) -> None:
        super().__init__(output)
        self._identity = EncoderIdentity(EncoderConfig.model_validate(encoder), digest, dimensions)

    def part(self, lines: list[bytes], problems: list[str]) -> dict[str, Any]:
        """See `PartActor`."""
        passages = [parse_passage(line, problem) for line, problem in zip(lines, problems, strict=True)]
        name = part_name(passages, self._identity)
        made = not has_part(self.parts, name, len(passages), self._identity)
        if made:
            self.parts.write(name, encode_part(embed(passages, self._encoder)))
        return {"name": name, "made": made}

    def out_of_memory(self) -> RegradError:
        """See `PartActor`."""
        batch = f"{self._identity.config.batch_size} passages"
        problem = f"the GPU's memory is too small for {batch} at once; lower dense.encoder.batch_size"
        return RetrievalError(problem, code="out_of_memory", batch=batch)

    @cached_property
    def _encoder(self) -> Encoder:
        """Loaded when the first block needs it: with all parts there, no replica loads a model."""
        encoder, expected = Encoder(self._identity.config, device()), self._identity.digest
        if (found := encoder.digest()) != expected:
            raise RetrievalError(
                f"the encoder at {encoder.config.path} is {found[:16]} on one machine and {expected[:16]} on another; "
                "give a path that all machines share",
                code="other_encoder",
                expected=expected,
                found=found,
            )
        return encoder


def embed_corpus(config: IndexConfig) -> int:
    """Make the dense index of a corpus; returns how many passages it has.

    Interrupted at any point, the same call goes on: what is embedded lies beside the output until the index is whole.
    Raises `RetrievalError`, `CorpusError`, `StorageError` or `ClusterError`.
    """
    assert config.corpus is not None
    check_replaceable(config.output, CARD)
    count = run_with_pool(config.corpus, config.cluster, _embed, config)
    Storage(parts_uri(config.output)).remove()
    return count


def run_with_pool(corpus: str, workers: WorkersConfig, function: Callable[..., T], *arguments: Any) -> T:
    """Run a function that gives the vectors of a corpus by `pooled_vectors`; its last argument is its progress.

    Raises `ClusterError` if there is no room for the pool, and what the function raises.
    """
    total = sum(file.bytes for file in corpus_files(corpus))
    with cluster(), progress_bar(total) as bar, progress_channel(lambda item: _show(item, bar)) as progress:
        require_workers(workers)
        wait_for_room(workers)
        return run_task(function, *arguments, progress)


def _show(item: str | tuple[int, int], bar: Callable[[tuple[int, int]], None]) -> None:
    if isinstance(item, str):
        logger.info(item)
    else:
        bar(item)


def _embed(config: IndexConfig, progress: Any) -> int:
    assert config.corpus is not None
    assert config.dense is not None
    # First of all, and here, so that a wrong path is reported before the corpus is read.
    encoder = EncoderIdentity.of(Encoder(config.dense.encoder, "cpu"))

    def vectors(blocks: Iterator[Sequence[Passage]]) -> Iterator[Vectors]:
        return pooled_vectors(blocks, encoder, config, progress)

    passages = _told(read_passages(config.corpus), progress)
    return write_dense_index(passages, vectors, config.output, encoder, config.dense)


def pooled_vectors(
    blocks: Iterable[Sequence[Passage]], encoder: EncoderIdentity, config: IndexConfig, progress: Any
) -> Iterator[Vectors]:
    """The vectors of the blocks, which are those of the corpus, by a pool of actors. Call it in a task.

    Parts lie beside the output until whoever calls it removes them.
    """
    parts = Storage(parts_uri(config.output))
    return vectors_of_parts(blocks, parts, encoder, embedded_parts(config, encoder), progress)


def _told(passages: Iterable[Passage], progress: Any) -> Iterator[Passage]:
    for count, passage in enumerate(passages, start=1):
        if count % _CHECKED_A_LINE == 0:
            progress.push.remote(f"{count} passages checked")
        yield passage


def embedded_parts(config: IndexConfig, encoder: EncoderIdentity) -> Iterator[dict[str, Any]]:
    """What the pool says of each part of the corpus, in order: see `PartActor`. Call it in a task."""
    assert config.corpus is not None
    assert config.dense is not None
    arguments = (config.output, encoder.config.model_dump(mode="json"), encoder.digest, encoder.dimensions)
    return part_rows(EmbeddingActor, arguments, config.corpus, config.dense.part_passages, config.cluster)


def vectors_of_parts(
    blocks: Iterable[Sequence[Passage]],
    parts: Storage,
    encoder: EncoderIdentity,
    rows: Iterable[dict[str, Any]],
    progress: Any,
) -> Iterator[Vectors]:
    """The vectors of each block as its part is done: the blocks say what the index has, the rows what was embedded.

    Raises `RetrievalError` if the two are not the same, and the first error that an actor reports.
    """
    done = kept = read = 0
    reported = 0.0
    for block, row in zip_longest(blocks, finished(rows)):
        if block is None or row is None or row["name"] != (name := part_name(block, encoder)):
            raise RetrievalError("the corpus changed while it was embedded; run again", code="corpus_changed")
        yield read_part(parts, name, len(block), encoder)
        done, kept, read = done + len(block), kept + len(block) * (not row["made"]), read + int(row["read_bytes"])
        if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            progress.push.remote((done, read))
    progress.push.remote((done, read))
    if kept:
        progress.push.remote(f"{kept} of {done} passages were embedded by an earlier run")
