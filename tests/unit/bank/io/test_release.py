"""Gradients that the ReGrad release saved, imported into a bank."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from regrad.bank.inspect import passage_info
from regrad.bank.io.release import import_release
from regrad.bank.reader import BankReader
from regrad.errors import BankError, CorpusError, MetaInitError
from regrad.meta_init import CARD, MetaInit
from regrad.storage import Storage
from tests.tools.banks import PASSAGES, atoms
from tests.tools.foreign_atoms import PEFT_NAME, Bomb, lines, no_bank, peft, quarantine
from tests.tools.refusals import refused


def test_gradients_keyed_by_passage(tmp_path: Path, meta_init: str) -> None:
    values = atoms(3)
    torch.save({f"doc {i}": peft(values[i]) for i in range(3)}, tmp_path / "g.pt")
    done = import_release(str(tmp_path / "g.pt"), str(tmp_path / "b"), meta_init)
    assert (done.added, done.refused, done.left_out) == (3, 0, 0)
    bank = BankReader(str(tmp_path / "b"), fingerprint=MetaInit.load(meta_init).fingerprint)
    assert bank.read(["doc 0", "doc 1", "doc 2"]).equal(values)


@pytest.mark.parametrize("shape", ["text", "tuple", "nested"])
def test_gradients_keyed_by_question_and_rank(tmp_path: Path, meta_init: str, shape: str) -> None:
    values = atoms(3)
    flat: dict[Any, Any] = {(0, 0): peft(values[0]), (0, 1): peft(values[1]), (1, 0): peft(values[1] * 1.001)}
    flat[1, 1] = peft(values[2])
    if shape == "text":
        flat = {f"{question}_{rank}": tensors for (question, rank), tensors in flat.items()}
    if shape == "nested":
        flat = {q: [flat[q, 0], flat[q, 1]] for q in (0, 1)}
    torch.save(flat, tmp_path / "g.pt")
    source, uri = str(tmp_path / "g.pt"), str(tmp_path / "b")
    with refused(BankError, "not_keyed_by_passage", key="0_0"):
        import_release(source, uri, meta_init)
    names = [
        {"key": [0, 0], "id": "p0", "title": "title 0", "text": "text 0"},
        {"key": "0_1", "id": "p1"},
        {"key": "1_0", "id": "p1"},
    ]
    done = import_release(source, uri, meta_init, lines(tmp_path / "ids.jsonl", names))
    assert (done.added, done.left_out) == (2, 1)
    assert BankReader(uri).read(["p0", "p1"]).equal(values[:2])
    assert BankReader(uri).read([PASSAGES[0]]).equal(values[:1])
    assert passage_info(uri, "p0").text_hash == PASSAGES[0].text_hash
    names[2]["id"] = "p0"
    names[2] |= {"title": "title 0", "text": "text 0"}
    with refused(BankError, "atoms_differ", passage_id="p0"):
        import_release(source, str(tmp_path / "c"), meta_init, lines(tmp_path / "ids.jsonl", names))
    with refused(BankError, "no_known_key"):
        import_release(source, uri, meta_init, lines(tmp_path / "ids.jsonl", [{"key": "9_9", "id": "p0"}]))
    with refused(CorpusError, "wrong_field", where=f"{tmp_path}/ids.jsonl line 1", field="key"):
        import_release(source, uri, meta_init, lines(tmp_path / "ids.jsonl", [{"id": "p0"}]))


def test_parameters_and_other_floats_are_tensors_too(tmp_path: Path, meta_init: str) -> None:
    values = atoms(2)
    trained = {name: torch.nn.Parameter(tensor) for name, tensor in peft(values[0]).items()}
    half = {name: tensor.half() for name, tensor in peft(values[1]).items()}
    torch.save({"a": trained, "b": half}, tmp_path / "g.pt")
    import_release(str(tmp_path / "g.pt"), str(tmp_path / "b"), meta_init)
    assert BankReader(str(tmp_path / "b")).read(["a", "b"]).equal(torch.stack([values[0], values[1].half().float()]))


def test_a_directory_of_files_with_a_damaged_and_an_infinite_one(tmp_path: Path, meta_init: str) -> None:
    folder, uri = tmp_path / "g", str(tmp_path / "b")
    (folder / "deep").mkdir(parents=True)
    values = atoms(3)
    values[2, 0] = torch.inf
    torch.save(peft(values[0]), folder / "p0.pt")
    torch.save(peft(values[1]), folder / "deep" / "p1.pt")
    torch.save(peft(values[2]), folder / "p2.pt")
    (folder / "p3.pt").write_bytes((folder / "p0.pt").read_bytes()[:-100])
    (folder / "p4.pt").write_bytes(b"")
    done = import_release(str(folder), uri, meta_init)
    assert (done.added, done.refused) == (2, 3)
    assert BankReader(uri).read(["p0", "deep/p1"]).equal(values[:2])
    assert set(quarantine(uri)) == {"p2", "p3", "p4"}
    assert quarantine(uri)["p2"] == "a number is not finite"
    assert not re.search(r"\[|\]|Traceback", quarantine(uri)["p3"] + quarantine(uri)["p4"])


def test_gradients_come_from_a_store_too_and_no_copy_stays(
    tmp_path: Path, meta_init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "g" / "deep").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    values = atoms(2)
    torch.save(peft(values[0]), tmp_path / "g" / "p0.pt")
    torch.save(peft(values[1]), tmp_path / "g" / "deep" / "p1.pt")
    (tmp_path / "g" / "p2.pt").write_bytes(b"")
    remote = "memory://releases/popqa"
    Storage(remote).fs.put(str(tmp_path / "g"), Storage(remote).root, recursive=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    uri = str(tmp_path / "b")
    done = import_release(remote, uri, meta_init)
    assert (done.added, done.refused) == (2, 1)
    assert BankReader(uri).read(["p0", "deep/p1"]).equal(values)
    assert quarantine(uri)["p2"].startswith(f"{remote}/p2.pt cannot be read")
    assert import_release(f"{remote}/deep/p1.pt", str(tmp_path / "c"), meta_init).added == 1
    Storage(remote).fs.pipe_file(f"{Storage(remote).root}/p3.pt", b"no tensors")
    with refused(BankError, "unsafe_file", file=f"{remote}/p3.pt"):
        import_release(f"{remote}/p3.pt", uri, meta_init)
    with refused(BankError, "source_not_found", uri=f"{remote}/none"):
        import_release(f"{remote}/none", uri, meta_init)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_file_named_by_question_and_rank_does_not_name_its_passage(tmp_path: Path, meta_init: str) -> None:
    (tmp_path / "g").mkdir()
    torch.save(peft(atoms(1)[0]), tmp_path / "g" / "0_1.pt")
    with refused(BankError, "not_keyed_by_passage", key="0_1"):
        import_release(str(tmp_path / "g"), str(tmp_path / "b"), meta_init)
    ids = lines(tmp_path / "ids.jsonl", [{"key": "0_1", "id": "p0"}])
    assert import_release(str(tmp_path / "g"), str(tmp_path / "b"), meta_init, ids).added == 1


@pytest.mark.parametrize("modern", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, meta_init: str, modern: bool) -> None:
    content = {"doc": peft(atoms(1)[0]), "evil": Bomb(tmp_path / "ran")}
    torch.save(content, tmp_path / "g.pt", _use_new_zipfile_serialization=modern)
    with refused(BankError, "unsafe_file", file=str(tmp_path / "g.pt")) as caught:
        import_release(str(tmp_path / "g.pt"), str(tmp_path / "b"), meta_init)
    assert "mkdir" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert no_bank(tmp_path / "b")


@pytest.mark.parametrize(
    ("content", "code", "fields"),
    [
        (
            {"doc": {"base_model.model.m.lora_A.weight": torch.ones(2, 5)}},
            "other_tensors",
            {"missing": ["m.B", "n.A", "n.B"]},
        ),
        ({"doc": peft(atoms(1)[0]) | {PEFT_NAME.format("m", "A"): torch.ones(3, 5)}}, "other_shape", {"tensor": "m.A"}),
        ({"doc": {"m.weight": torch.ones(7, 5)}}, "unknown_tensor", {"tensor": "m.weight"}),
        ({"doc": 3}, "no_gradients", {"found": "int"}),
        (torch.ones(3), "no_gradients", {"found": "Tensor"}),
        (7, "no_gradients", {"found": "int"}),
        ({}, "no_atoms", {}),
    ],
)
def test_gradients_that_do_not_fit_are_an_error(
    tmp_path: Path, meta_init: str, content: Any, code: str, fields: dict[str, Any]
) -> None:
    torch.save(content, tmp_path / "g.pt")
    with refused(BankError, code, **fields):
        import_release(str(tmp_path / "g.pt"), str(tmp_path / "b"), meta_init)
    assert no_bank(tmp_path / "b")


def test_a_release_needs_files_and_a_meta_init_of_one_step(tmp_path: Path, meta_init: str) -> None:
    with refused(BankError, "source_not_found", uri=str(tmp_path / "g.pt")):
        import_release(str(tmp_path / "g.pt"), str(tmp_path / "b"), meta_init)
    (tmp_path / "empty").mkdir()
    with refused(BankError, "no_files"):
        import_release(str(tmp_path / "empty"), str(tmp_path / "b"), meta_init)
    card = json.loads(Path(meta_init, CARD).read_text())
    Path(meta_init, CARD).write_text(json.dumps(card | {"inner_steps": 2}))
    with refused(MetaInitError, "several_inner_steps", uri=meta_init):
        import_release(str(tmp_path / "empty"), str(tmp_path / "b"), meta_init)
