"""docs/bank-format.md is enough to read a bank: its own reader, taken from the page, agrees with regrad's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from regrad.bank.codecs import CODECS, codec_for
from regrad.bank.reader import BankReader
from regrad.bank.writer import commit, write_shard
from regrad.config import CodecName
from regrad.corpus import Passage
from regrad.language_model.subspace import Subspace
from regrad.storage import Storage

DOCUMENT = Path(__file__).parents[2] / "docs" / "bank-format.md"
# With a side shorter than the rank, sides that are no multiple of 64, and room enough for low-rank records.
SUBSPACES = [
    Subspace((("m", 3, 70), ("n", 70, 50)), 5, 2.0),
    Subspace((("m", 128, 384), ("n", 384, 128)), 32, 2.0),
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {"__name__": "document"}
    exec(compile(found[1], str(DOCUMENT), "exec"), names)  # noqa: S102
    return names


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("subspace", SUBSPACES, ids=["small", "large"])
def test_the_documents_reader_reads_what_regrad_writes(
    tmp_path: Path, document: dict[str, Any], codec: CodecName, subspace: Subspace
) -> None:
    storage, passages = Storage(str(tmp_path)), [Passage(f"p{i}", "title", f"text {i}") for i in range(3)]
    atoms = torch.randn(3, subspace.size, generator=torch.Generator().manual_seed(0))
    commit(storage, "f" * 16, codec, subspace, write_shard(storage, codec_for(codec, subspace), passages, atoms))
    found = torch.from_numpy(document["read_atom"](str(tmp_path), "p1").copy())
    torch.testing.assert_close(found, BankReader(str(tmp_path)).read(["p1"])[0])
