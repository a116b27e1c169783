"""The index of a retriever in training, made anew by a pool of actors (`embedding.py`) beside the training workers.

The worker of rank 0 saves the passages' encoder where all machines see it and starts a task, in which Ray Data embeds
the corpus into parts; training goes on meanwhile. Each worker then reads the parts into a file of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs.cluster import cause_of, joined
from ray_jobs.embedding import embed_corpus, embedded_parts
from ray_jobs.parts import finished
from ray_jobs.run_settings import UNFINISHED, run_storage
from regrad.errors import ClusterError, RegradError, StorageError, TrainingError
from regrad.retrieval.config import DenseConfig, EncoderConfig, IndexConfig
from regrad.retrieval.dense import DenseRetriever
from regrad.retrieval.embedding import EncoderIdentity, Vectors, part_name, read_part
from regrad.retrieval.encoder import Encoder
from regrad.storage import Storage, directory_writer, parts_uri
from regrad.text import first_line
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.passage_side import mapped, other_corpus
from regrad.training.workers import Workers

_MODULES = "modules.json"


def vectors_uri(config: RetrieverTrainConfig) -> str:
    """Where encoders and vectors of a run lie until it is done: beside its output."""
    return f"{config.output}.vectors"


def check_vectors_place(config: RetrieverTrainConfig) -> None:
    """Raise `StorageError` if there is something where a run's vectors go that no unfinished run has put there."""
    uri = vectors_uri(config)
    if config.passages is None or run_storage(config).exists(UNFINISHED) or not Storage(uri).files():
        return
    raise StorageError(
        f"{uri} exists, where this run would keep its vectors and remove them afterwards: move it away, or choose "
        "another output",
        code="occupied",
        uri=uri,
    )


def discard_vectors(config: RetrieverTrainConfig) -> None:
    """Remove what a run's refreshes left. A run without any made nothing there, and may find what is not its own."""
    if config.passages is not None:
        Storage(vectors_uri(config)).remove()


def index_config(config: RetrieverTrainConfig, corpus: str, encoder: EncoderConfig, output: str) -> IndexConfig:
    """How vectors are made for this run: exact ones, by its own pool."""
    assert config.passages is not None
    dense = DenseConfig(encoder=encoder, vectors="flat", part_passages=config.passages.part_passages)
    return IndexConfig(corpus=corpus, output=output, dense=dense, cluster=config.passages.cluster)


def require_together(config: RetrieverTrainConfig) -> None:
    """Raise `ClusterError` if this machine has no room for training workers and those that embed beside them."""
    assert config.passages is not None
    beside = config.passages.cluster
    wanted = config.cluster.workers * config.cluster.cpus_per_worker + beside.workers * beside.cpus_per_worker
    if wanted > (found := ray.cluster_resources().get("CPU", 0)) and not joined():
        raise ClusterError(
            f"training workers and those that embed beside them need {wanted:g} CPUs, but this machine has {found:g}: "
            "set cluster.workers, passages.cluster.workers or their cpus_per_worker lower",
            code="too_small",
            resource="CPU",
            expected=wanted,
            found=found,
        )


def index_anew(config: RetrieverTrainConfig, corpus: str, encoder: EncoderConfig, output: str) -> str:
    """Make the index of a corpus with an encoder, by the job that `regrad index` is; gives where it is."""
    made = f"{vectors_uri(config)}/{Path(output).name}"
    embed_corpus(index_config(config, corpus, encoder, made))
    return made


class RefresherBeside:
    """See `Refresher`: the vectors of a run's index, made by other processes."""

    def __init__(self, config: RetrieverTrainConfig, retriever: DenseRetriever, workers: Workers) -> None:
        self._config, self._retriever, self._first = config, retriever, workers.rank == 0
        self._task: Any = None
        self._made: tuple[EncoderIdentity, str] | None = None

    def start(self, encoder: Encoder) -> None:
        """Save the encoder and start to embed the corpus with it; the files of the last one are not needed any more."""
        assert self._config.passages is not None
        if self._first and self._made is not None:  # every worker has read them into a file of its own
            Storage(self._made[1]).remove()
        identity = passages_identity(encoder)
        place = f"{vectors_uri(self._config)}/{identity.digest[:16]}"
        # Every worker has the same weights, so each knows the names of the parts without being told.
        self._made = (identity, parts_uri(place))
        if not self._first:
            return
        if not Storage(f"{place}/encoder").exists(_MODULES):
            with directory_writer(f"{place}/encoder", _MODULES) as folder:
                encoder.save_passages(folder)
        at = identity.config.model_copy(update={"path": f"{place}/encoder"})
        config = index_config(self._config, self._config.passages.corpus, at, place)
        # Not inside the reservation of the training workers: the pool has CPUs of its own.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        embed = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(_embedded)
        self._task = embed.remote(config.model_dump(mode="json"), identity.digest, identity.dimensions)

    def wait(self) -> None:
        """Until the task has ended; raises what it raised, and `TrainingError` if its process died."""
        if self._task is None:
            return
        task, self._task = self._task, None
        try:
            ray.get(task)
        except ray.exceptions.RayTaskError as error:
            cause = cause_of(error)
            raise cause if isinstance(cause, RegradError) else _died(cause) from None
        except ray.exceptions.RayError as error:
            raise _died(error) from error

    def read(self) -> Vectors:
        """The vectors of the index's passages, of the parts that were made of the corpus."""
        assert self._made is not None
        assert self._config.passages is not None
        (identity, uri), size = self._made, self._config.passages.part_passages
        parts = Storage(uri)

        def blocks() -> Iterator[Vectors]:
            for block in self._retriever.blocks(size):
                name = part_name(block, identity)
                if not parts.exists(name):
                    raise other_corpus(self._config.index, block[0].id)
                yield read_part(parts, name, len(block), identity)

        return mapped(blocks(), identity.dimensions)


def passages_identity(encoder: Encoder) -> EncoderIdentity:
    """That of the passages' network alone, as it will be when it is loaded from where it was saved."""
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_passages(Path(folder))
        at = encoder.config.model_copy(update={"path": folder, "question_path": None})
        return EncoderIdentity.of(Encoder(at, "cpu"))


def _embedded(config: dict[str, Any], digest: str, dimensions: int) -> int:
    """In a task: embed the corpus into parts; gives how many there are."""
    settings = IndexConfig.model_validate(config)
    assert settings.dense is not None
    identity = EncoderIdentity(settings.dense.encoder, digest, dimensions)
    return sum(1 for _ in finished(embedded_parts(settings, identity)))


def _died(error: BaseException) -> TrainingError:
    reason = first_line(error)
    return TrainingError(f"what embeds the corpus died: {reason}", code="refresh_died", reason=reason)
