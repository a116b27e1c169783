"""`regrad bank` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from regrad.bank.reader import BankReader
from regrad.cli.bank import command
from regrad.errors import AtomNotFound, BankError
from tests.unit.banks import fill


def bank(*arguments: str, given: str = "") -> Result:
    result = CliRunner().invoke(command, list(arguments), input=given)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_forgetting_step_by_step(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    assert "every one of the 7 records on disk belongs to a passage" in bank("info", uri).output
    assert "forgotten: 2 passages" in bank("delete", uri, "p1", "--ids-from", "-", given="p4\n\n").output
    assert "2 atoms that no passage of this version has" in bank("info", uri).output
    assert "5 passages in 1 shards" in bank("compact", uri).output
    assert "would remove versions: 1, 2" in bank("gc", uri, "--dry-run").output
    assert "removed versions: 1, 2" in bank("gc", uri).output
    assert "every one of the 5 records on disk belongs to a passage" in bank("info", uri).output
    found = json.loads(bank("info", uri, "--id", "p4", "--json").output)
    assert (found["shard"], found["remains"], found["forgotten_in"]) == (None, [], 2)
    assert "every byte is as it was written" in bank("verify", uri).output


def test_damage_is_listed_and_the_status_says_so(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    place = BankReader(uri).locate("p2")
    assert place is not None
    path = tmp_path / "shards" / place.shard
    data = bytearray(path.read_bytes())
    data[place.start] ^= 1
    path.write_bytes(data)
    result = bank("verify", uri)
    assert result.exit_code == 1
    assert "1 of its atoms are damaged\n  p2" in result.output
    assert json.loads(bank("verify", uri, "--json").stdout)[0]["passages"] == ["p2"]


def test_quarantine_and_diff(tmp_path: Path) -> None:
    uri = str(tmp_path)
    fill(uri)
    assert bank("info", uri, "--quarantine").output == "bad: empty text\n"
    bank("delete", uri, "p0")
    assert "removed: 1: p0" in bank("diff", uri, "1").output
    assert json.loads(bank("diff", uri, "1", "2", "--json").output)["removed"] == ["p0"]


def test_what_is_not_there_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="there is no bank at"):
        bank("info", str(tmp_path / "none"))
    fill(str(tmp_path))
    with pytest.raises(AtomNotFound, match="nothing was deleted"):
        bank("delete", str(tmp_path), "nobody")
    assert bank("delete", str(tmp_path)).exit_code == 2
    with pytest.raises(BankError, match="has no version 9"):
        bank("info", str(tmp_path), "--version", "9")
