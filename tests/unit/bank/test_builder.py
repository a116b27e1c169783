"""What a version of a bank took to make."""

from __future__ import annotations

from pathlib import Path

from regrad.bank.builder import Preparation, note_preparation, read_preparation
from regrad.storage import Storage


def test_a_version_that_computed_nothing_has_what_the_one_before_took(tmp_path: Path) -> None:
    bank = str(tmp_path / "bank")
    assert read_preparation(bank, 1) is None
    note_preparation(bank, 2, Preparation(passages=4, seconds=0.2))
    note_preparation(bank, 3, Preparation(passages=0, seconds=0.0))
    found = read_preparation(bank, 3)
    assert found is not None and found.milliseconds_per_passage == 50
    assert read_preparation(bank, 1) is None


def test_a_damaged_note_is_as_none(tmp_path: Path) -> None:
    bank = str(tmp_path / "bank")
    note_preparation(bank, 1, Preparation(passages=2, seconds=1.0))
    Storage(f"{bank}.preparation").write("00000002.json", b"{")
    found = read_preparation(bank, 2)
    assert found is not None and found.seconds == 1.0
