"""Passages to vectors, block by block, and the files in which they wait for the index that is made of them.

One process embeds a block after the other; a job gives blocks to many, each of which leaves its vectors as a *part*.
Blocks are of `part_passages` passages in the corpus's order, and what is encoded together depends on the block alone:
so the same encoder gives the same vectors, whoever encodes which block.

A part is one safetensors file: `vectors` [N, D] float32, and `sha256`, the 32 bytes of that hash over them. Its name is
a hash of what it was made of, so that a job which was killed finds what it has, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from regrad.data.passages import Passage
from regrad.digests import pieces_digest
from regrad.errors import RetrievalError, StorageError
from regrad.retrieval.config import DenseConfig, EncoderConfig
from regrad.storage import Storage

if TYPE_CHECKING:
    from regrad.retrieval.encoder import Encoder

_VECTORS, _SHA256 = "vectors", "sha256"

Vectors = NDArray[np.float32]
"""[N, D], a row a text."""


@dataclass(frozen=True)
class EncoderIdentity:
    """Which encoder vectors are of: its settings, the digest of its weights and settings, and D."""

    config: EncoderConfig
    digest: str
    dimensions: int

    @classmethod
    def of(cls, encoder: Encoder) -> EncoderIdentity:
        """That of a loaded encoder."""
        return cls(encoder.config, encoder.digest(), encoder.dimensions)


Embedding = Callable[[Iterator[Sequence[Passage]], EncoderIdentity, DenseConfig], Iterable[Vectors]]
"""What gives the vectors of blocks of passages, in their order, by this encoder for an index of these settings."""


def embed(passages: Sequence[Passage], encoder: Encoder) -> Vectors:
    """The vectors [N, D] of a block; raises `RetrievalError` for one that is not finite."""
    vectors = encoder.encode_passages(passages)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        passage = passages[int(np.argmin(finite))]
        raise RetrievalError(
            f"the encoder gives passage {passage.id!r:.80} a vector that is not finite; load it in float32",
            code="not_finite",
            passage_id=passage.id,
        )
    return vectors


def part_name(passages: Sequence[Passage], encoder: EncoderIdentity) -> str:
    """The file of these passages' vectors by this encoder."""
    # What shares a batch is padded to one length, which changes the last digits: the batch size counts, too.
    made_by = f"{encoder.digest}|{encoder.config.batch_size}".encode()
    return f"{pieces_digest([made_by, *(passage.digest for passage in passages)])}.safetensors"


def encode_part(vectors: Vectors) -> bytes:
    """The content of a part."""
    return save({_VECTORS: vectors, _SHA256: _sha256(vectors)})


def read_part(parts: Storage, name: str, passages: int, encoder: EncoderIdentity) -> Vectors:
    """The vectors of a part [N, D]; raises `RetrievalError` if it is damaged."""
    try:
        found = load(parts.read(name))
        vectors, expected = found[_VECTORS], found[_SHA256]
        if vectors.shape != (passages, encoder.dimensions) or vectors.dtype != np.float32:
            raise ValueError(f"it has {vectors.dtype} {list(vectors.shape)}")
        if not np.array_equal(expected, _sha256(vectors)):
            raise ValueError("its vectors are not what was written")
    except (SafetensorError, KeyError, ValueError) as error:
        raise RetrievalError(
            f"{parts.uri}/{name} is damaged: {error}; run the command again to make it anew", code="damaged", file=name
        ) from error
    return vectors


def has_part(parts: Storage, name: str, passages: int, encoder: EncoderIdentity) -> bool:
    """Whether the part is there, and is what was written."""
    try:
        read_part(parts, name, passages, encoder)
    except (RetrievalError, StorageError):
        return False
    return True


def _sha256(vectors: Vectors) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(vectors).data).digest(), np.uint8)
