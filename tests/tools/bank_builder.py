"""A build without Ray and without a model, for tests that kill it: atoms are made from the text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import sha256

import pyarrow as pa
import torch
from torch import Tensor

from regrad.bank.builder import BUILT, BlockBuilder, assemble, changes_nothing
from regrad.bank.format import Manifest, current_version, read_manifest
from regrad.bank.writer import commit
from regrad.data.passages import Passage
from regrad.storage import Storage
from tests.tools.banks import FLOAT32, SUBSPACE, layout

BLOCK = 6
SECONDS = 0.004


def corpus(count: int = 60) -> list[Passage]:
    """Passages, some of them bad, one id twice."""
    made = [Passage(f"id {i}", "", "" if i % 17 == 5 else f"text {i}") for i in range(count)]
    return [*made, Passage("id 3", "", "again")]


def extract(passages: Sequence[Passage]) -> list[tuple[Tensor | None, str]]:
    """An atom that depends on nothing but the text."""
    time.sleep(SECONDS)
    return [(_record(passage), "") if passage.text else (None, "empty text") for passage in passages]


def _record(passage: Passage) -> Tensor:
    seed = int.from_bytes(sha256(passage.text.encode()).digest()[:6], "big")
    return FLOAT32.encode(torch.randn(1, SUBSPACE.size, generator=torch.Generator().manual_seed(seed)))[0]


def build(uri: str, passages: Sequence[Passage]) -> Manifest:
    """What `ray_jobs.build_bank` does, block after block."""
    storage = Storage(uri)
    base = read_manifest(storage) if current_version(storage) else None
    builder = BlockBuilder(storage, {"codec": "float32"}, extract, base)
    tables = [builder.build(passages[i : i + BLOCK]) for i in range(0, len(passages), BLOCK)]
    built = pa.concat_tables([BUILT.empty_table(), *tables])
    change = assemble(storage, built, base, whole=True)
    if base and changes_nothing(storage, change, base):
        return base
    manifest = commit(storage, layout(), change, base)
    for name in sorted(set(built["receipt"].drop_null().to_pylist())):
        storage.remove_file(name)
    return manifest


def run(uri: str, started: str, count: int) -> None:
    """The child process that is killed: says that it has started, then builds."""
    torch.set_num_threads(1)
    open(started, "w").close()
    build(uri, corpus(count))
