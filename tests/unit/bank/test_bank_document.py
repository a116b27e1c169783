"""docs/bank-format.md is enough to read a bank: its own reader, taken from the page, agrees with regrad's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from regrad.bank.codecs import CODECS
from regrad.bank.config import CodecName
from regrad.bank.format import Layout
from regrad.bank.maintenance import delete
from regrad.bank.reader import BankReader
from regrad.bank.writer import BankWriter
from regrad.data.passages import Passage
from regrad.models.subspace import Subspace
from tests.tools.banks import atoms as values
from tests.tools.banks import layout, writer

DOCUMENT = Path(__file__).parents[3] / "docs" / "bank-format.md"
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
    passages = [Passage(f"p{i}", "title", f"text {i}") for i in range(3)]
    atoms = torch.randn(3, subspace.size, generator=torch.Generator().manual_seed(0))
    writer = BankWriter(str(tmp_path), Layout(fingerprint="f" * 16, codec=codec, subspace=subspace.to_json()))
    for passage, atom in zip(passages, atoms, strict=True):
        writer.add_atom(passage.id, passage.text_hash, atom)
    writer.commit()
    found = torch.from_numpy(document["read_atom"](str(tmp_path), "p1").copy())
    torch.testing.assert_close(found, BankReader(str(tmp_path)).read(["p1"])[0])


def test_the_documents_reader_knows_newer_parts_and_deleted_passages(tmp_path: Path, document: dict[str, Any]) -> None:
    many = [Passage(f"p{i}", "", f"text {i}") for i in range(40)]
    writer(str(tmp_path), layout(), many, values(40)).commit()
    writer(str(tmp_path), layout(), [Passage("p2", "", "new")], values(1, seed=3)).commit()
    manifest = delete(str(tmp_path), ["p4"])
    assert [part.deleted for part in manifest.parts] == [0, 1]  # small parts are merged into each other
    assert torch.from_numpy(document["read_atom"](str(tmp_path), "p2").copy()).equal(values(1, seed=3)[0])
    assert torch.from_numpy(document["read_atom"](str(tmp_path), "p6").copy()).equal(values(40)[6])
    with pytest.raises(KeyError, match="was deleted"):
        document["read_atom"](str(tmp_path), "p4")
