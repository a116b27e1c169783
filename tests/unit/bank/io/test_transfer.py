"""Atoms out of a bank and into one: copies, files of tensors, lists of ids, and the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from regrad.bank.format import Layout
from regrad.bank.io.prag import import_adapters
from regrad.bank.io.tensors import export_tensors, file_name, import_tensors
from regrad.bank.io.transfer import copy_bank, read_ids
from regrad.bank.maintenance import delete
from regrad.bank.reader import BankReader
from regrad.bank.verify import verify
from regrad.bank.writer import whole_index
from regrad.cli.bank import bank
from regrad.data.passages import Passage
from regrad.errors import AtomDamaged, AtomNotFound, BankError, CorpusError
from regrad.storage import Storage
from tests.tools.banks import PASSAGES, SUBSPACE, atoms, fill, layout, writer
from tests.tools.foreign_atoms import PEFT_NAME, lines, no_bank, peft, quarantine, write_adapter
from tests.tools.refusals import refused

ODD = [Passage(name, "t", f"text of {name!r}") for name in ("a/b ../é\n", "..", "CON", "a\x00b", " ", "x" * 400)]
IDS = [passage.id for passage in PASSAGES]


def records(uri: str) -> dict[str, tuple[bytes, str | None]]:
    """Every passage's encoded bytes and text hash."""
    bank = BankReader(uri)
    index, _ = whole_index(Storage(uri), bank.manifest)
    hashes = {row["passage_id"]: row["text_hash"] for row in index.to_pylist()}
    found = bank.fetch(bank.passage_ids())
    pairs = zip(bank.passage_ids(), found, strict=True)
    return {i: (item.record.numpy().tobytes(), hashes[i] and hashes[i].hex()) for i, item in pairs}  # type: ignore[union-attr]


# Bank to bank.


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_copy_has_the_same_bytes_and_hashes(tmp_path: Path, codec: Any) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    fill(a, codec)
    writer(a, layout(codec), ODD, atoms(len(ODD), 1)).commit()
    delete(a, ["p2"])
    done = copy_bank(a, b)
    assert (done.added, done.refused, done.manifest.version) == (12, 1, 1)
    assert records(b) == records(a)
    assert quarantine(b) == {"bad": "empty text"}
    assert verify(b) == []


def test_a_copy_with_another_codec_is_what_that_codec_makes(tmp_path: Path) -> None:
    a, b, c = (str(tmp_path / name) for name in "abc")
    fill(a)
    assert copy_bank(a, b, codec="int8").manifest.codec == "int8"
    fill(c, "int8")
    assert records(b) == records(c)
    assert copy_bank(a, c).manifest.codec == "int8"  # a bank that is there keeps its codec
    with refused(BankError, "other_layout", differs="codec", found="int8", wanted="float32"):
        copy_bank(a, c, codec="float32")


def test_a_copy_of_some_passages_of_an_old_version(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    fill(a)
    writer(a, layout(), PASSAGES[:1], atoms(1, 9)).commit()
    done = copy_bank(a, b, version=1, passage_ids=["p0", "p5", "p0"])
    assert (done.added, done.refused) == (2, 0)
    assert BankReader(b).read(["p0", "p5"]).equal(atoms()[[0, 5]])
    with refused(AtomNotFound, passage_ids=["nobody"]):
        copy_bank(a, str(tmp_path / "c"), passage_ids=["p0", "nobody"])
    assert no_bank(tmp_path / "c")


def test_a_copy_refuses_itself_other_layouts_and_damage(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    fill(a)
    fill(b, fingerprint="e" * 16)
    with refused(BankError, "same_bank"):
        copy_bank(a, a + "/")
    with refused(BankError, "other_layout", differs="fingerprint"):
        copy_bank(a, b)
    shard = next((tmp_path / "a" / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    with refused(AtomDamaged):
        copy_bank(a, str(tmp_path / "c"))
    assert no_bank(tmp_path / "c")


# Files of tensors.


def test_tensors_come_back_bit_by_bit_under_odd_ids(tmp_path: Path) -> None:
    a, files, b = (str(tmp_path / name) for name in ("a", "files", "b"))
    fill(a)
    writer(a, layout(), ODD, atoms(len(ODD), 1)).commit()
    made = writer(a, layout(), [], atoms(0))
    made.add_atom("no text", "", atoms(1, 2)[0])
    made.commit()
    assert export_tensors(a, files) == 14
    assert len(list(Path(files).iterdir())) == 16
    assert load_file(f"{files}/{file_name('p1')}")["n.B"].equal(SUBSPACE.unflatten(atoms()[1])["n.B"])
    done = import_tensors(files, b)
    assert (done.added, done.refused, done.manifest.layout) == (14, 0, BankReader(a).manifest.layout)
    assert records(b) == records(a)
    assert export_tensors(a, files, version=1, passage_ids=["p3"]) == 1
    assert len(list(Path(files).iterdir())) == 3


def test_bad_files_are_quarantined(tmp_path: Path) -> None:
    a, files, b = (str(tmp_path / name) for name in ("a", "files", "b"))
    fill(a)
    export_tensors(a, files)
    Path(files, file_name("p0")).unlink()
    Path(files, file_name("p1")).write_bytes(b"nonsense")
    tensors = load_file(f"{files}/{file_name('p2')}")
    tensors["m.A"][0, 0] = torch.nan
    save_file(tensors, f"{files}/{file_name('p2')}")
    done = import_tensors(files, b, "bf16")
    assert (done.added, done.refused) == (4, 3)
    assert set(quarantine(b)) == {"p0", "p1", "p2"}
    assert quarantine(b)["p2"] == "a number is not finite"
    assert BankReader(b).passage_ids() == ["p3", "p4", "p5", "p6"]


@pytest.mark.parametrize(
    ("change", "code", "fields"),
    [
        (lambda t: t.pop("m.A"), "other_tensors", {"missing": ["m.A"], "extra": []}),
        (lambda t: t.update({"x.A": torch.ones(2)}), "other_tensors", {"missing": [], "extra": ["x.A"]}),
        (lambda t: t.update({"bias": torch.ones(2)}), "unknown_tensor", {"tensor": "bias"}),
        (lambda t: t.update({"m.A": torch.ones(5, 2)}), "other_shape", {"tensor": "m.A", "found": [5, 2]}),
        (lambda t: t.update({"m.A": torch.ones(2, 5).int()}), "no_tensor", {"tensor": "m.A"}),
        (
            lambda t: t.update({PEFT_NAME.format("m", "A"): torch.ones(2, 5)}),
            "duplicate_tensor",
            {"tensor": "m.A"},
        ),
    ],
)
def test_tensors_that_do_not_fit_are_an_error(
    tmp_path: Path, change: Callable[[Any], Any], code: str, fields: dict[str, Any]
) -> None:
    a, files = str(tmp_path / "a"), str(tmp_path / "files")
    fill(a)
    export_tensors(a, files)
    tensors = load_file(f"{files}/{file_name('p4')}")
    change(tensors)
    save_file(tensors, f"{files}/{file_name('p4')}")
    with refused(BankError, code, **fields):
        import_tensors(files, str(tmp_path / "b"))
    assert no_bank(tmp_path / "b")


@pytest.mark.parametrize(
    ("file", "content", "code", "fields"),
    [
        ("bank.json", None, "no_export", {"missing": "bank.json"}),
        ("bank.json", "{", "bad_card", {}),
        ("bank.json", "{}", "bad_card", {}),
        ("atoms.jsonl", None, "no_export", {"missing": "atoms.jsonl"}),
        ("atoms.jsonl", '{"id": "p0"}', "wrong_field", {"field": "file"}),
        ("atoms.jsonl", '{"id": "p0", "file": "../x"}', "wrong_field", {"field": "file"}),
        ("atoms.jsonl", '{"id": "p0", "file": "x", "text_hash": "12"}', "wrong_field", {"field": "text_hash"}),
        ("atoms.jsonl", '{"id": "\\ud800", "file": "x"}', "bad_id", {}),
        ("atoms.jsonl", "", "no_atoms", {}),
    ],
)
def test_what_is_no_export_is_an_error(
    tmp_path: Path, file: str, content: str | None, code: str, fields: dict[str, str]
) -> None:
    a, files = str(tmp_path / "a"), tmp_path / "files"
    fill(a)
    export_tensors(a, str(files))
    (files / file).unlink() if content is None else (files / file).write_text(content)
    with refused(BankError, code, **fields):
        import_tensors(str(files), str(tmp_path / "b"))
    assert no_bank(tmp_path / "b")


# The commands.


def export(*arguments: str) -> Result:
    return CliRunner().invoke(bank, ["export", *arguments])


def import_(*arguments: str) -> Result:
    return CliRunner().invoke(bank, ["import", *arguments])


def test_the_commands_copy_and_say_what_they_did(tmp_path: Path) -> None:
    a, b, c, files = (str(tmp_path / name) for name in ("a", "b", "c", "files"))
    fill(a)
    done = export(a, b)
    assert (done.exit_code, "copied 7 atoms" in done.output) == (0, True), done.output
    assert records(b) == records(a)
    (tmp_path / "ids").write_text("p1\n\np4\n")
    done = export(a, files, "--format", "safetensors", "--ids-from", str(tmp_path / "ids"), "--version", "1")
    assert (done.exit_code, "2 atoms" in done.output) == (0, True), done.output
    done = import_(c, "--from", files, "--format", "safetensors", "--codec", "bf16")
    assert (done.exit_code, "added 2 atoms" in done.output) == (0, True), done.output
    assert BankReader(c).manifest.codec == "bf16"
    assert import_(c, "--from", a, "--format", "bank").exit_code == 0
    assert (BankReader(c).passage_ids(), BankReader(c).manifest.version) == (IDS, 2)
    assert isinstance(export(a, a).exception, BankError)


def test_the_command_imports_what_others_wrote(tmp_path: Path, meta_init: str) -> None:
    torch.save({"0_0": peft(atoms(1)[0]), "0_1": peft(atoms(1, 1)[0])}, tmp_path / "g.pt")
    ids = lines(tmp_path / "ids.jsonl", [{"key": "0_0", "id": "p0"}])
    release = ["--from", str(tmp_path / "g.pt"), "--format", "regrad-release"]
    done = import_(str(tmp_path / "b"), *release, "--meta-init", meta_init, "--ids", ids)
    assert (done.exit_code, "added 1 atom to" in done.output) == (0, True), done.output
    done = import_(str(tmp_path / "b"), *release)
    assert (done.exit_code, "needs --meta-init" in done.output) == (2, True)
    write_adapter(tmp_path / "adapters/0", 0)
    prag = ["--from", str(tmp_path / "adapters"), "--format", "prag"]
    done = import_(str(tmp_path / "c"), *prag, "--base-identity", "llama")
    assert (done.exit_code, "added 1 atom" in done.output) == (0, True), done.output
    done = import_(str(tmp_path / "c"), *prag, "--meta-init", meta_init)
    assert (done.exit_code, "does not go with --format prag" in done.output) == (2, True)
    done = export(str(tmp_path / "b"), str(tmp_path / "d"), "--format", "safetensors", "--codec", "bf16")
    assert (done.exit_code, "--codec goes with --format bank" in done.output) == (2, True)


@pytest.mark.parametrize("name", ["x.ndjson", "x.JSONL", "x.tsv", "x.parquet"])
def test_ids_from_a_corpus_in_any_format(tmp_path: Path, name: str) -> None:
    """Read line by line, its records would have been taken for ids."""
    if name == "x.parquet":
        pq.write_table(pa.table({"docid": [1, 2], "text": ["t", "u"]}), tmp_path / name)
    elif name == "x.tsv":
        (tmp_path / name).write_text("docid\ttext\n1\tt\n2\tu\n")
    else:
        (tmp_path / name).write_text('{"docid": 1, "text": "t"}\n{"_id": "2"}\n')
    assert read_ids(str(tmp_path / name)) == ["1", "2"]


def test_ids_from_lines_and_from_a_corpus(tmp_path: Path) -> None:
    assert read_ids(lines(tmp_path / "x.jsonl", [{"id": "a\nb", "text": "t"}, {"id": "c"}])) == ["a\nb", "c"]
    (tmp_path / "x").write_text("é f\r\ng\n")
    assert read_ids(str(tmp_path / "x")) == ["é f", "g"]
    for content, code in ((b"", "empty"), (b"\xff", "damaged")):
        (tmp_path / "x").write_bytes(content)
        with refused(CorpusError, code, uri=str(tmp_path / "x")):
            read_ids(str(tmp_path / "x"))
    with refused(CorpusError, "missing_field", where=f"{tmp_path}/x.jsonl line 1", field="id"):
        read_ids(lines(tmp_path / "x.jsonl", [{"key": "a"}]))
    with refused(CorpusError, "not_found", uri=str(tmp_path / "nowhere")):
        read_ids(str(tmp_path / "nowhere"))


def test_an_adapter_bank_is_not_a_gradient_bank(tmp_path: Path) -> None:
    uri = str(tmp_path / "b")
    write_adapter(tmp_path / "a/0", 0)
    made = import_adapters(str(tmp_path / "a"), uri).manifest.layout
    values = torch.zeros(1, made.parsed_subspace().size)
    with refused(BankError, "other_layout", differs="kind", found="adapter"):
        writer(uri, Layout(**{**made.model_dump(), "kind": "gradient"}), PASSAGES[:1], values).commit()
