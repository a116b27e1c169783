"""Dense retrieval: passages and questions as vectors of one encoder, the nearest by inner product.

Beside the passage store an index has its vectors and the encoder's card. Up to some hundred thousand passages they are
searched one by one, which is exact, straight from the file; beyond, by one of FAISS's approximate indexes.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval.base import CARD, IndexCard, Retriever, kind_of, read_index_card, write_card
from regrad.retrieval.config import DenseConfig, EncoderConfig, RetrieverConfig
from regrad.retrieval.embedding import Embedding, EncoderIdentity, Vectors, embed
from regrad.retrieval.encoder_card import FILE as _ENCODER
from regrad.retrieval.encoder_card import EncoderCard, TrainedQuestions, read_encoder_card
from regrad.retrieval.index_files import local_index
from regrad.retrieval.passage_store import PassageStore, store_passages
from regrad.storage import Storage, directory_writer

if TYPE_CHECKING:
    from regrad.retrieval.encoder import Encoder

logger = logging.getLogger(__name__)

_VECTORS = "vectors.f32"
_FAISS = "vectors.faiss"
_QUESTION_ENCODER = "question-encoder"
# Where the exact search stops to be the right choice: a hundred milliseconds a question on one core, about.
_EXACT_UP_TO, _GRAPH_UP_TO = 300_000, 3_000_000
_REASONS = {
    "flat": f"exact: up to {_EXACT_UP_TO:,} passages",
    "hnsw": f"a graph of neighbours: up to {_GRAPH_UP_TO:,} passages, all vectors in memory",
    "ivf-pq": "cells of compressed vectors: more passages than a graph has memory for",
}
_TRAINED_ON = 200_000
_BLOCK = 65_536
# The last digits of a question's scores depend on what shares its batch, and must not decide the order of equals.
_DIGITS, _MORE = 5, 16


def build_dense_index(
    passages: Iterable[Passage], uri: str, encoder: Encoder, settings: DenseConfig, embedding: Embedding | None = None
) -> int:
    """Encode every passage at `uri`, whole or not at all; returns how many there were.

    Vectors are those that `embedding` gives, or that this process makes. Raises `RetrievalError` if there are no
    passages, an id occurs twice or a vector is not finite.
    """
    identity = EncoderIdentity.of(encoder)

    def vectors(blocks: Iterator[Sequence[Passage]]) -> Iterable[Vectors]:
        return embedding(blocks, identity, settings) if embedding else (embed(block, encoder) for block in blocks)

    return write_dense_index(passages, vectors, uri, identity, settings)


def write_dense_index(
    passages: Iterable[Passage],
    vectors: Callable[[Iterator[Sequence[Passage]]], Iterable[Vectors]],
    uri: str,
    encoder: EncoderIdentity,
    settings: DenseConfig,
) -> int:
    """Write an index of passages and the vectors that `vectors` gives for blocks of them, whole or not at all.

    `vectors` is called with the blocks, of `part_passages` passages in the corpus's order, once all passages were read
    and their ids found to be unique: what is wrong with a corpus is reported before anything is encoded. It gives the
    vectors of the blocks in their order. They go to the file as they come, so neither corpus nor vectors are ever in
    memory as a whole (but for an approximate index, which FAISS makes in memory, of the mapped file). Returns how many
    passages there were. Raises `RetrievalError` if there are none or an id occurs twice.
    """
    with directory_writer(uri, CARD) as folder:
        count = sum(len(batch) for batch in store_passages(passages, folder))
        if not count:
            raise RetrievalError("the corpus is empty: there is nothing to index", code="empty_corpus")
        store = PassageStore(folder)
        with (folder / _VECTORS).open("wb") as file:
            for block in vectors(store.blocks(settings.part_passages)):
                file.write(block.data)
        store.close()
        kind = _kind(settings, count)
        if kind != "flat":
            _write_faiss(folder, kind, count, encoder.dimensions)
        card = EncoderCard.model_validate(
            {
                "encoder": encoder.config,
                "digest": encoder.digest,
                "dimensions": encoder.dimensions,
                "vectors": kind,
            }
        )
        (folder / _ENCODER).write_text(card.encoded())
        write_card(folder, "dense", count)
    return count


def _kind(settings: DenseConfig, count: int) -> str:
    if settings.vectors != "auto":
        return settings.vectors
    kind = "flat" if count <= _EXACT_UP_TO else "hnsw" if count <= _GRAPH_UP_TO else "ivf-pq"
    logger.info("%s passages: %s (%s); `vectors` chooses another", f"{count:,}", kind, _REASONS[kind])
    return kind


# FAISS and the encoder's libraries are imported where they are used: a kind is asked where nothing is searched, too.
def _faiss() -> Any:
    import faiss

    return faiss  # Any: its own annotations lack some of its classes


def _encoder(config: EncoderConfig, device: str | None = None) -> Encoder:
    from regrad.retrieval.encoder import Encoder

    return Encoder(config, device)


def _write_faiss(folder: Path, kind: str, count: int, dimensions: int) -> None:
    """An approximate index in place of the vectors."""
    faiss = _faiss()
    vectors = np.memmap(folder / _VECTORS, dtype=np.float32, mode="r", shape=(count, dimensions))
    if kind == "hnsw":
        index = faiss.index_factory(dimensions, "HNSW32", faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 128
    else:
        cells = int(max(1, min(4 * count**0.5, count / 39)))  # FAISS wants 39 vectors a cell to learn from
        parts = next(parts for parts in (64, 48, 32, 16, 8, 4, 2, 1) if dimensions % parts == 0)
        bits = 8 if count >= 39 * 256 else 4
        index = faiss.index_factory(dimensions, f"IVF{cells},PQ{parts}x{bits}", faiss.METRIC_INNER_PRODUCT)
        rng = np.random.default_rng(0)
        chosen = np.sort(rng.choice(count, min(count, _TRAINED_ON), replace=False))
        index.train(np.ascontiguousarray(vectors[chosen]))
    for start in range(0, count, _BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + _BLOCK]))
    faiss.write_index(index, str(folder / _FAISS))
    del vectors
    (folder / _VECTORS).unlink()


def passages_encoder(index: str) -> str:
    """The digest of the encoder of an index's passages; empty if it is not dense. Reads cards only."""
    if not issubclass(kind_of(read_index_card(index)), DenseRetriever):
        return ""
    return read_encoder_card(Storage(index).read(_ENCODER), index).digest


def check_passages_encoder(index: str, expected: str) -> None:
    """Raise `RetrievalError` unless the passages' encoder of this index has this digest."""
    if (found := passages_encoder(index)) != expected:
        raise RetrievalError(
            f"the question encoder is trained for vectors of the encoder {expected[:16]}, and the index at {index} has "
            f"those of {found[:16] or 'none'}; index its corpus with the same encoder",
            code="other_encoder",
            expected=expected,
            found=found,
        )


def with_question_encoder(index: str, encoder: Path, trained_for: str, uri: str, notes: Mapping[str, Any]) -> int:
    """Write `index` again at `uri` with the question encoder of this folder, whole or not at all; gives its passages.

    `trained_for` is the digest of the passages' encoder that the question encoder was trained beside. Raises
    `RetrievalError` if the index's passages are of another.
    """
    check_passages_encoder(index, trained_for)
    card = read_index_card(index)
    source = local_index(index, card.files)
    described = _described(source)
    with directory_writer(uri, CARD) as folder:
        for name in card.files:
            if name != _ENCODER and not name.startswith(f"{_QUESTION_ENCODER}/"):
                shutil.copyfile(source / name, folder / name)
        shutil.copytree(encoder, folder / _QUESTION_ENCODER)
        config = _with_trained(described.encoder, folder)
        trained = TrainedQuestions(digest=_encoder(config, "cpu").digest(), notes=dict(notes))
        (folder / _ENCODER).write_text(described.model_copy(update={"question_encoder": trained}).encoded())
        write_card(folder, "dense", card.passages)
    return card.passages


def _with_trained(config: EncoderConfig, folder: Path) -> EncoderConfig:
    """The settings of an index's trained question encoder, which takes the place of any other."""
    return config.model_copy(update={"path": str(folder / _QUESTION_ENCODER), "question_path": None})


def _described(folder: Path) -> EncoderCard:
    return read_encoder_card((folder / _ENCODER).read_bytes(), str(folder))


class DenseRetriever(Retriever):
    """Search by the vectors of `build_dense_index`. Safe to use from many threads.

    `encoder` is that of questions: the passages', or one that was trained for them and lies beside the vectors.
    `passages_digest` is the digest of the passages' encoder.
    """

    MAKES_VECTORS = True

    @classmethod
    def how_searched(cls, uri: str) -> str:
        """See `Retriever`: how vectors are searched, and when that is chosen."""
        kind = read_encoder_card(Storage(uri).read(_ENCODER), uri).vectors
        return f"{kind} ({_REASONS[kind]}); `dense.vectors` chooses another"

    @classmethod
    def named_models(cls, uri: str, card: IndexCard) -> tuple[str, ...]:
        """See `Retriever`: the passages' encoder, and one of questions that does not lie beside the vectors."""
        encoder = read_encoder_card(Storage(uri).read(_ENCODER), uri).encoder
        return (encoder.path, *((encoder.question_path,) if encoder.question_path else ()))

    def __init__(self, folder: Path, card: IndexCard, settings: RetrieverConfig) -> None:
        super().__init__(folder, card, settings)
        described = _described(folder)
        config, expected = described.encoder, described.digest
        if described.question_encoder:
            config = _with_trained(config, folder)
            expected = described.question_encoder.digest
        if settings.dense.encoder:
            config = config.model_copy(update={"path": settings.dense.encoder})
        if settings.dense.question_encoder and config.question_path:
            config = config.model_copy(update={"question_path": settings.dense.question_encoder})
        self.encoder = _encoder(config)
        if (found := self.encoder.digest()) != expected:
            raise RetrievalError(
                f"the index was made with the encoder {expected[:16]} of {described.dimensions} dimensions, and "
                f"{config.path} is {found[:16]} of {self.encoder.dimensions}: another model, or other settings of it; "
                "give the right one as `encoder`",
                code="other_encoder",
                expected=expected,
                found=found,
            )
        self.passages_digest, self._trained = described.digest, described.question_encoder
        self._folder, self._exactly = folder, described.vectors == "flat"
        self._dimensions = described.dimensions
        _same("dimensions", self._dimensions, self.encoder.dimensions, "its encoder gives")
        self._probes = settings.dense.probes
        self._nearest = self._exact(folder) if self._exactly else self._approximate(folder)

    @property
    def vectors(self) -> Vectors:
        """The passages' vectors [N, D] in the corpus's order, mapped from their file.

        Raises `RetrievalError` for an approximate index, which has none.
        """
        if not self._exactly:
            raise RetrievalError(
                "the index keeps no vectors, only an approximate search of them; make it with `vectors: flat`",
                code="no_vectors",
            )
        # Copy-on-write: what shares this memory and expects to write to it cannot reach the file.
        shape = (self.card.passages, self._dimensions)
        return np.memmap(self._folder / _VECTORS, dtype=np.float32, mode="c", shape=shape)

    @property
    def temperature(self) -> float | None:
        """See `Retriever`: that of `regrad retriever`, whatever encoder the settings name now."""
        return self._trained.temperature if self._trained else None

    def passages_encoder(self, device: str | None = None) -> Encoder:
        """The encoder that made the vectors, loaded anew; raises `RetrievalError` if it is not there any more."""
        config = _described(self._folder).encoder
        encoder = _encoder(config, device)
        if (found := encoder.digest()) != self.passages_digest:
            raise RetrievalError(
                f"the index was made with the encoder {self.passages_digest[:16]}, and {config.path} is {found[:16]}; "
                "put the encoder back, or make the index again",
                code="other_encoder",
                expected=self.passages_digest,
                found=found,
            )
        return encoder

    def blocks(self, size: int) -> Iterator[list[Passage]]:
        """All passages in the order of their vectors, `size` at a time."""
        return self._store.blocks(size)

    def ids_of_rows(self, rows: Sequence[int]) -> dict[int, str]:
        """The ids of the passages at these rows of `vectors`."""
        return self._store.ids_of_rows(rows)

    def ranked(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """Ties are in the corpus's order. A question without words has a vector, too, and finds what is near it."""
        vectors = self.encoder.encode_questions(questions)
        if not np.isfinite(vectors).all():
            raise RetrievalError(
                "the encoder gives a question a vector that is not finite; load it in float32", code="not_finite"
            )
        scores, rows = self._nearest(vectors, k)
        if not np.isfinite(scores[rows >= 0]).all() or (self._exactly and (rows < 0).any()):
            raise RetrievalError(
                f"the vectors at {self._folder} are damaged: they give scores that are not finite; restore them "
                "(`regrad index --check` names the file), or make the index again",
                code="damaged",
                file=_VECTORS if self._exactly else _FAISS,
            )
        ids = self._store.ids_of_rows(sorted({int(row) for row in rows.ravel() if row >= 0}))
        return [
            [(ids[int(row)], float(score)) for score, row in zip(each_s, each_r, strict=True) if row >= 0]
            for each_s, each_r in zip(scores, rows, strict=True)
        ]

    def build_like(self, passages: Iterable[Passage], uri: str, embedding: Embedding | None = None) -> int:
        """With the same encoder, and the same one of questions beside it if that was trained."""
        described = _described(self._folder)
        config = described.encoder
        # An approximate search learns from many vectors: an addition chooses by its own number.
        how = DenseConfig(encoder=config, vectors="flat" if self._exactly else "auto")
        trained = described.question_encoder
        if not trained:
            return build_dense_index(passages, uri, self.encoder, how, embedding)
        with TemporaryDirectory() as folder:
            build_dense_index(passages, f"{folder}/index", _encoder(config), how, embedding)
            questions = self._folder / _QUESTION_ENCODER
            return with_question_encoder(f"{folder}/index", questions, self.passages_digest, uri, trained.notes)

    def _exact(self, folder: Path) -> Any:
        numbers = (folder / _VECTORS).stat().st_size / np.dtype(np.float32).itemsize
        _same("dimensions", self._dimensions, numbers / self.card.passages, f"{_VECTORS} has, for each passage,")
        vectors = np.memmap(folder / _VECTORS, dtype=np.float32, mode="r", shape=(self.card.passages, self._dimensions))

        faiss = _faiss()

        def nearest(questions: Vectors, k: int) -> tuple[Vectors, Any]:
            # Block by block, so that a file larger than memory is read through it and not into it.
            best = [
                (scores, rows + start)
                for start, block in _blocks(vectors)
                for scores, rows in [
                    faiss.knn(questions, block, min(k + _MORE, len(block)), faiss.METRIC_INNER_PRODUCT)
                ]
            ]
            with np.errstate(over="ignore", invalid="ignore"):  # of damaged vectors, which `ranked` refuses
                scores = np.concatenate([part for part, _ in best], axis=1).round(_DIGITS)
            rows = np.concatenate([part for _, part in best], axis=1)
            order = np.lexsort((rows, -scores), axis=1)[:, :k]
            return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

        return nearest

    def _approximate(self, folder: Path) -> Any:
        faiss = _faiss()
        try:
            index = faiss.read_index(str(folder / _FAISS), faiss.IO_FLAG_MMAP)
        except RuntimeError as error:  # whatever it meets in the file
            reason = " ".join(str(error).split())[:200]
            raise RetrievalError(
                f"FAISS cannot read {folder / _FAISS}: {reason}; restore it, or make the index again",
                code="damaged",
                file=_FAISS,
            ) from error
        _same("dimensions", self._dimensions, index.d, f"{_FAISS} has")
        _same("vectors", self.card.passages, index.ntotal, f"{_FAISS} has")

        def nearest(questions: Vectors, k: int) -> tuple[Vectors, Any]:
            inverted = isinstance(index, faiss.IndexIVF)
            parameters = (
                faiss.SearchParametersIVF(nprobe=self._probes)
                if inverted
                else faiss.SearchParametersHNSW(efSearch=max(2 * k, self._probes))
            )
            found: tuple[Vectors, Any] = index.search(questions, k, params=parameters)
            return found

        return nearest


def _same(what: str, expected: int, found: float, where: str) -> None:
    if expected != found:
        raise RetrievalError(
            f"the index should have {expected:,} {what}, and {where} {found:,.6g}: files of two indexes are mixed, or "
            f"{_ENCODER} was changed; restore it, or make the index again",
            code="other_dimensions",
            expected=expected,
            found=found,
        )


def _blocks(vectors: Vectors) -> Iterator[tuple[int, Vectors]]:
    for start in range(0, len(vectors), _BLOCK):
        yield start, np.ascontiguousarray(vectors[start : start + _BLOCK])
