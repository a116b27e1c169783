"""The computed tables of docs/scaling.md are what the script computes."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_the_document_has_the_tables_that_the_script_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from scaling_table import Assumed, markdown, tables

    document = (ROOT / "docs" / "scaling.md").read_text()
    missing = [name for name, rows in tables(Assumed()).items() if markdown(rows) not in document]
    assert not missing, f"{missing}: python benchmarks/scaling_table.py --markdown"


def test_subspaces_and_sizes_are_those_that_the_models_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from scaling_table import BASES

    found = {base.name: (base.subspace.size, base.parameters) for base in BASES}
    # The numbers of configs/models, and of the models' own cards (1.24, 8.03 and 70.6 billion parameters).
    assert found["1B, rank 16"] == (3_932_160, 1_235_814_400)
    assert found["8B, rank 4"] == (3_538_944, 8_030_261_248)
    assert found["70B, rank 1"][1] == 70_553_706_496
