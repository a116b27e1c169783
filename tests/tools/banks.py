"""Small banks for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regrad.bank.codecs import codec_for
from regrad.bank.config import CodecName
from regrad.bank.format import Layout, Manifest
from regrad.bank.writer import BankWriter
from regrad.data.passages import Passage
from regrad.models.subspace import Subspace

SUBSPACE = Subspace((("m", 5, 7), ("n", 7, 3)), 2, 2.0)
FLOAT32 = codec_for("float32", SUBSPACE)
PASSAGES = [Passage(f"p{i}", f"title {i}", f"text {i}") for i in range(7)]


def layout(codec: CodecName = "float32", fingerprint: str = "f" * 16) -> Layout:
    return Layout(fingerprint=fingerprint, codec=codec, subspace=SUBSPACE.to_json())


def atoms(count: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(count, SUBSPACE.size, generator=torch.Generator().manual_seed(seed))


def writer(uri: str, kind: Layout, passages: Sequence[Passage], values: Tensor, shard_passages: int = 3) -> BankWriter:
    made = BankWriter(uri, kind, shard_passages)
    for passage, atom in zip(passages, values, strict=True):
        made.add_atom(passage.id, passage.text_hash, atom)
    return made


def fill(uri: str, codec: CodecName = "float32", fingerprint: str = "f" * 16, scale: float = 1.0) -> Manifest:
    """Seven passages in shards of three; one more is refused."""
    made = writer(uri, layout(codec, fingerprint), PASSAGES, atoms() * scale)
    made.refuse("bad", "empty text")
    return made.commit()
