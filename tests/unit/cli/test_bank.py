"""`regrad bank`: what each verb says and does, and that mistakes are one sentence."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from regrad.bank.builder import BUILDS
from regrad.bank.reader import BankReader
from regrad.cli import bank as bank_cli
from regrad.cli import main
from regrad.data.passages import Passage
from regrad.errors import RegradError
from regrad.text import readable_size
from tests.tools.banks import PASSAGES, atoms, fill, layout, writer


def bank(line: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(bank_cli.bank, shlex.split(line), input=stdin)


def said(line: str, stdin: str | None = None) -> str:
    result = bank(line, stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refusal(line: str, stdin: str | None = None) -> str:
    """The sentence of a mistake: one of ours, or one of click's."""
    result = bank(line, stdin)
    assert result.exit_code
    if isinstance(result.exception, RegradError):
        return str(result.exception)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    return result.output


@pytest.fixture
def uri(tmp_path: Path) -> str:
    fill(str(tmp_path / "bank"))
    return str(tmp_path / "bank")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("untouched"))
    fill(uri)
    return uri


def damage(uri: str, passage_id: str) -> None:
    place = BankReader(uri).locate(passage_id)
    assert place is not None
    path = Path(uri, "shards", place.shard)
    data = bytearray(path.read_bytes())
    data[place.start + 5] ^= 4
    path.write_bytes(data)


def test_help_lists_the_verbs_and_each_explains_itself() -> None:
    overview = said("--help")
    for verb in ("info", "diff", "verify", "add", "delete", "compact", "gc", "export", "import"):
        assert f"\n  {verb} " in overview
        assert "  -" in said(f"{verb} --help")


def test_info_describes_the_bank(uri: str) -> None:
    text = said(f"info {uri}")
    assert f"bank      {uri}\n" in text
    assert "gradients at MetaInit ffffffffffffffff, 44 numbers each" in text
    assert "float32, 176 bytes a record" in text
    assert "7, and 1 refused (--quarantine lists them)" in text
    assert "Every one of the 7 records on disk belongs to a passage." in text
    found = json.loads(said(f"info {uri} --json"))
    assert (found["passages"], found["shards"], found["dead_records"]) == (7, 3, 0)
    assert said(f"info {uri} --quarantine") == "bad\tempty text\n"
    assert json.loads(said(f"info {uri} --quarantine --json")) == [{"id": "bad", "reason": "empty text"}]


def test_info_mentions_builds_that_did_not_end(uri: str) -> None:
    Path(uri, BUILDS).mkdir()
    Path(uri, BUILDS, "0.parquet").write_bytes(b"")
    assert "1 block of interrupted builds" in said(f"info {uri}")


def test_forgetting_step_by_step(uri: str) -> None:
    text = said(f"delete {uri} p3 p6 p3")
    assert f"forgot 2 passages in version {BankReader(uri).manifest.label}: p3, p6\n5 passages left." in text
    assert f"    regrad bank compact {uri}\n    regrad bank gc {uri}\n" in text
    text = said(f"info {uri}")
    assert re.search(r"2 records \(\d+ bytes\) of atoms that no passage has are still in shard files", text)
    assert f"run `regrad bank compact {uri}`, then `regrad bank gc {uri}`." in text
    text = said(f"info {uri} --id p3")
    assert "none in this version" in text
    assert "in version 2; no older version returns it" in text
    assert "Its bytes are still there" in text
    assert "version 3-" in (text := said(f"compact {uri}"))
    assert "5 passages in 1 shard, before in 2" in text
    assert "is compact already: nothing was done" in said(f"compact {uri}")
    assert "would remove" in (text := said(f"gc {uri} --dry-run"))
    assert "versions: 1, 2" in text
    assert "    shards/" in text
    assert "removed" in said(f"gc {uri}")
    assert said(f"gc {uri}") == "nothing to remove\n"
    assert "Every one of the 5 records on disk belongs to a passage." in said(f"info {uri}")
    text = said(f"info {uri} --id p3")
    assert "held by  no file that a version names for it" in text
    assert "its bytes are gone" in text


def test_bytes_that_no_version_names_are_not_called_gone(uri: str) -> None:
    """gc before compact: the shard stays for its neighbours, and nobody knows any more whose its first row was."""
    said(f"delete {uri} p3")
    said(f"gc {uri}")
    assert "perhaps this one: run `regrad bank compact" in said(f"info {uri} --id p3")


def test_info_finds_one_passage(uri: str) -> None:
    text = said(f"info {uri} --id p2")
    assert "row 2 of shards/" in text
    assert f"text hash  {PASSAGES[2].text_hash}" in text
    assert "refused  empty text" in said(f"info {uri} --id bad").replace("refused    ", "refused  ")
    assert json.loads(said(f"info {uri} --id p2 --json"))["row"] == 2


def test_ids_come_from_a_file_or_standard_input(uri: str, tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes("﻿p0\r\n\np1".encode())
    assert "forgot 2 passages" in said(f"delete {uri} --ids-from {tmp_path}/ids")
    assert "forgot 2 passages" in said(f"delete {uri} p2 --ids-from -", "p4\n")
    assert BankReader(uri).passage_ids() == ["p3", "p5", "p6"]


def test_ids_that_would_move_the_cursor_are_escaped(uri: str) -> None:
    writer(uri, layout(), [Passage("\x1b[2J", "", "x")], atoms(1)).commit()
    assert 'added    1: "\\u001b[2J"' in said(f"diff {uri} 1")


def test_verify_names_damage_and_the_ways_out(uri: str) -> None:
    assert said(f"verify {uri}") == "all good\n"
    damage(uri, "p4")
    result = bank(f"verify {uri}")
    assert result.exit_code == 1
    assert "its checksum does not match; 1 of its atoms are damaged\n  lost: p4\n" in result.output
    assert "1 damaged file, 1 lost atom" in result.output
    assert f"`regrad bank delete {uri} ID...`" in result.output
    result = bank(f"verify {uri} --json")
    assert (result.exit_code, json.loads(result.output)["damage"][0]["passages"]) == (1, ["p4"])
    said(f"delete {uri} p4")
    assert "all good" not in bank(f"verify {uri}").output
    said(f"compact {uri}")
    assert said(f"verify {uri}") == "all good\n"


def test_verify_repairs_look_up_files(uri: str) -> None:
    path = next(Path(uri, "lookup").iterdir())
    path.write_bytes(b"")
    assert f"`regrad bank verify {uri} --repair`" in bank(f"verify {uri}").output
    text = said(f"verify {uri} --repair")
    assert "it was made again" in text
    assert text.endswith("all good now\n")
    assert said(f"verify {uri}") == "all good\n"


def test_verify_reports_a_manifest_that_is_damaged(uri: str) -> None:
    said(f"delete {uri} p4")
    Path(uri, "manifests/00000001.json").write_text("{")
    result = bank(f"verify {uri}")
    assert (result.exit_code, "manifests/00000001.json: " in result.output) == (1, True)
    assert "copy an older one to a new bank" in result.output
    Path(uri, "manifests/00000002.json").write_text("{")
    assert "2 damaged files" in bank(f"verify {uri}").output


def test_verify_can_drop_what_is_lost(uri: str) -> None:
    damage(uri, "p4")
    assert "--drop-lost`, then compute them again" in bank(f"verify {uri}").output
    assert bank(f"verify {uri} --drop-lost").exit_code == 1
    assert (BankReader(uri).manifest.version, len(BankReader(uri))) == (2, 6)
    assert "does not go with --version" in refusal(f"verify {uri} --drop-lost --version 1")


def test_verify_does_not_call_a_newer_format_damage(uri: str) -> None:
    Path(uri, "manifests/00000002.json").write_text('{"format": 3}')
    assert "has format 3; this regrad reads format 2: update regrad" in refusal(f"verify {uri}")


def test_diff_counts_and_lists_the_first_ids(uri: str) -> None:
    more = [Passage(f"q{i:02}", "", "x") for i in range(25)]
    writer(uri, layout(), [*more, PASSAGES[1]], atoms(26, seed=3)).commit()
    said(f"delete {uri} p0")
    text = said(f"diff {uri} 1")
    assert "added    25: q00, q01" in text
    assert "q19 and 5 more\n" in text
    assert "removed  1: p0\nchanged  1: p1\nmoved    0" in text
    assert "added    0\n" in said(f"diff {uri} 2 3")
    assert len(json.loads(said(f"diff {uri} 1 3 --json"))["added"]) == 25


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("info {dir}/none", "there is no bank at"),
        ("info {uri} --version 9", "has no version 9; it has 1"),
        ("info {uri} --id nobody", "knows no passage 'nobody'"),
        ("delete {uri}", "name the ids to forget"),
        ("delete {uri} p1 nobody", "has no atom for ['nobody']; nothing was deleted"),
        ("delete {uri} '\udcff'", "is not valid UTF-8"),
        ("delete {uri} --ids-from {dir}/none", "does not exist"),
        ("compact {uri} --shard-bytes 0", "is not in the range"),
        ("compact {dir}/none", "there is no bank at"),
        ("gc {uri} --keep 0", "at least one version has to be kept"),
        ("gc {uri} --grace -1", "is not in the range"),
        ("verify {dir}/none", "there is no bank at"),
        ("diff {uri} 1 4", "has no version 4; it has 1"),
        ("diff {uri} one", "'one' is not a valid integer"),
        ("export {uri} {dir}/copy --codec zip", "'zip' is not one of"),
        ("export {uri} {dir}/copy --format safetensors --codec int8", "--codec goes with --format bank"),
        ("export {uri} {uri}", "is the bank itself"),
        ("export {uri} {dir}/copy --ids-from -", "has no atom for ['nobody']"),
        ("import {uri} --from {dir} --format regrad-release", "needs --meta-init"),
        ("import {uri} --from {dir} --format prag --meta-init x", "--meta-init does not go with --format prag"),
        ("import {uri} --from {dir} --format safetensors", "is not an export of atoms"),
    ],
    ids=lambda value: value.replace("\udcff", "?") if isinstance(value, str) else "",
)
def test_a_mistake_is_told_clearly_and_changes_nothing(untouched: str, tmp_path: Path, line: str, message: str) -> None:
    uri, before = untouched, BankReader(untouched).manifest
    assert message in " ".join(refusal(line.format(uri=uri, dir=tmp_path), "nobody\n").split())
    assert BankReader(uri).manifest == before
    assert not (tmp_path / "copy").exists()


def test_ids_that_are_not_text_are_refused(uri: str, tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(b"\xff\xfe")
    assert "UTF-16" in refusal(f"delete {uri} --ids-from {tmp_path}/ids")


def test_the_entry_point_makes_them_one_sentence_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "_configure_logging", lambda debug: None)
    monkeypatch.setattr("sys.argv", ["regrad", "bank", "info", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no bank at")
    fill(str(tmp_path))
    damage(str(tmp_path), "p1")
    monkeypatch.setattr("sys.argv", ["regrad", "bank", "verify", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 1


def test_an_id_or_a_name_cannot_move_the_cursor(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["regrad", "bank", "info", f"{uri}\x1b[31m"])
    with pytest.raises(SystemExit):
        main.main()
    assert "\\x1b[31m" in capsys.readouterr().err
    odd = writer(uri, layout(), PASSAGES[:1], atoms()[:1])
    odd.refuse("odd", "\x1b[2J is no tensor")
    odd.commit()
    assert "\nodd\t\\x1b[2J is no tensor\n" in said(f"info {uri} --quarantine")


def test_sizes_are_for_people() -> None:
    assert [readable_size(n) for n in (0, 1, 999, 1000, 15_728_640, 999_960, 330e12)] == [
        "0 bytes",
        "1 byte",
        "999 bytes",
        "1.0 kB",
        "15.7 MB",
        "1.0 MB",
        "330.0 TB",
    ]
