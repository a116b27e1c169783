"""Atoms out of a bank and into one: copies, files of tensors, gradients and adapters that others wrote."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from regrad.bank.format import QUARANTINE, Layout, current_version, read_table
from regrad.bank.inspect import passage_info
from regrad.bank.io.prag import import_adapters
from regrad.bank.io.release import import_release
from regrad.bank.io.tensors import export_tensors, file_name, import_tensors
from regrad.bank.io.transfer import copy_bank, read_ids
from regrad.bank.maintenance import delete
from regrad.bank.reader import BankReader
from regrad.bank.verify import verify
from regrad.bank.writer import whole_index
from regrad.cli.bank import bank
from regrad.data.passages import Passage
from regrad.errors import AtomDamaged, AtomNotFound, BankError, CorpusError, MetaInitError
from regrad.meta_init import CARD, MetaInit
from regrad.models.config import ModelConfig
from regrad.storage import Storage
from tests.tools.banks import PASSAGES, SUBSPACE, atoms, fill, layout, writer
from tests.tools.refusals import refused

ODD = [Passage(name, "t", f"text of {name!r}") for name in ("a/b ../é\n", "..", "CON", "a\x00b", " ", "x" * 400)]
IDS = [passage.id for passage in PASSAGES]
PEFT_NAME = "base_model.model.{}.lora_{}.weight"


def records(uri: str) -> dict[str, tuple[bytes, str | None]]:
    """Every passage's encoded bytes and text hash."""
    bank = BankReader(uri)
    index, _ = whole_index(Storage(uri), bank.manifest)
    hashes = {row["passage_id"]: row["text_hash"] for row in index.to_pylist()}
    found = bank.fetch(bank.passage_ids())
    pairs = zip(bank.passage_ids(), found, strict=True)
    return {i: (item.record.numpy().tobytes(), hashes[i] and hashes[i].hex()) for i, item in pairs}  # type: ignore[union-attr]


def quarantine(uri: str) -> dict[str, str]:
    file = BankReader(uri).manifest.quarantine
    rows = read_table(Storage(uri), file, QUARANTINE).to_pylist() if file else []
    return {row["passage_id"]: row["reason"] for row in rows}


def no_bank(path: Path) -> bool:
    return current_version(Storage(str(path))) is None


def peft(atom_P: Tensor) -> dict[str, Tensor]:
    """An atom under the names of PEFT."""
    return {PEFT_NAME.format(*name.rsplit(".", 1)): t.clone() for name, t in SUBSPACE.unflatten(atom_P).items()}


@pytest.fixture
def meta_init(tmp_path: Path) -> str:
    made = MetaInit(ModelConfig(path="none"), "0" * 64, SUBSPACE, SUBSPACE.initial(), torch.ones(4))
    made.save(tmp_path / "meta-init")
    return str(tmp_path / "meta-init")


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


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


# The authors' release.


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


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


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


# PRAG's adapters.


PRAG = {"r": 2, "lora_alpha": 32, "target_modules": ["down_proj", "gate_proj", "up_proj"], "task_type": "CAUSAL_LM"}
BASE = "meta-llama/Llama-3.2-1B-Instruct"


def write_adapter(folder: Path, seed: int, pickled: bool = False, **settings: Any) -> dict[str, Tensor]:
    """One adapter of a tiny Llama as PEFT saves it; its tensors by `<module>.A` and `.B`."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=8, num_key_value_heads=2, **shape))
    base.name_or_path = BASE
    model = get_peft_model(base, LoraConfig(**(PRAG | settings)))
    tensors = {}
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape))
                module, factor = name.removeprefix("base_model.model.").split(".lora_")
                tensors[f"{module}.{factor[0]}"] = value.detach().clone()
    model.save_pretrained(folder, safe_serialization=not pickled, save_embedding_layers=False)
    return tensors


def test_adapters_as_peft_writes_them(tmp_path: Path) -> None:
    root, uri = tmp_path / "rank=2_alpha=32", str(tmp_path / "b")
    written = {}
    for i, name in enumerate(["data_0/passage_0", "data_0/passage_1", "data_1/passage_0"]):
        written[name] = write_adapter(root / name, i, pickled=i == 1)
    write_adapter(root / "base_weight", 9)
    write_adapter(root / "data_1/passage_1", 4)
    (root / "data_1/passage_1/adapter_model.safetensors").write_bytes(b"cut off")
    write_adapter(root / "data_1/passage_2", 5)
    bad = load_file(root / "data_1/passage_2/adapter_model.safetensors")
    next(iter(bad.values()))[0, 0] = torch.nan
    save_file(bad, root / "data_1/passage_2/adapter_model.safetensors")
    done = import_adapters(str(root), uri)
    assert (done.added, done.refused, done.manifest.kind) == (3, 2, "adapter")
    assert set(quarantine(uri)) == {"data_1/passage_1", "data_1/passage_2"}
    bank = BankReader(uri)
    subspace = bank.manifest.parsed_subspace()
    assert [name for name, _, _ in subspace.modules] == [
        f"model.layers.{i}.mlp.{projection}" for i in (0, 1) for projection in ("gate_proj", "up_proj", "down_proj")
    ]
    assert (subspace.rank, subspace.scaling) == (2, 16.0)
    for name, tensors in written.items():
        found = subspace.unflatten(bank.read([name])[0])
        assert set(found) == set(tensors)
        assert all(found[key].equal(tensors[key]) for key in found)
    names = lines(
        tmp_path / "ids.jsonl", [{"key": "data_0/passage_1", "id": "p1", "title": "title 1", "text": "text 1"}]
    )
    done = import_adapters(str(root), uri, names)
    assert (done.added, done.left_out) == (1, 4)
    assert BankReader(uri).read([PASSAGES[1]]).equal(bank.read(["data_0/passage_1"]))
    with refused(BankError, "other_layout", differs="fingerprint"):
        import_adapters(str(root), uri, base_identity="another")


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"r": 3}, "other_adapter"),
        ({"lora_alpha": 8}, "other_adapter"),
        ({"target_modules": ["up_proj"]}, "other_adapter"),
        ({"use_dora": True}, "not_plain_lora"),
        ({"rank_pattern": {"up_proj": 4}}, "not_plain_lora"),
    ],
)
def test_adapters_of_another_kind_are_an_error(tmp_path: Path, settings: dict[str, Any], code: str) -> None:
    write_adapter(tmp_path / "a/0", 0)
    write_adapter(tmp_path / "a/1", 1, **settings)
    with refused(BankError, code):
        import_adapters(str(tmp_path / "a"), str(tmp_path / "b"))
    assert no_bank(tmp_path / "b")


def test_what_is_no_directory_of_adapters_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a/0").mkdir(parents=True)
    with refused(BankError, "no_adapters"):
        import_adapters(str(tmp_path / "a"), str(tmp_path / "b"))
    (tmp_path / "a/0/adapter_config.json").write_text("{")
    with refused(BankError, "no_readable_adapter"):
        import_adapters(str(tmp_path / "a"), str(tmp_path / "b"))
    (tmp_path / "a/0/adapter_config.json").write_text('{"peft_type": "IA3"}')
    with refused(BankError, "no_lora"):
        import_adapters(str(tmp_path / "a"), str(tmp_path / "b"))
    write_adapter(tmp_path / "a/0", 0)
    torch.save({"x": Bomb(tmp_path / "ran")}, tmp_path / "a/0/adapter_model.bin")
    (tmp_path / "a/0/adapter_model.safetensors").unlink()
    with refused(BankError, "unsafe_file"):
        import_adapters(str(tmp_path / "a"), str(tmp_path / "b"))
    assert not (tmp_path / "ran").exists()


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


def test_ids_from_lines_and_from_a_corpus(tmp_path: Path) -> None:
    assert read_ids(lines(tmp_path / "x.jsonl", [{"id": "a\nb", "text": "t"}, {"id": "c"}])) == ["a\nb", "c"]
    (tmp_path / "x").write_text("é f\r\ng\n")
    assert read_ids(str(tmp_path / "x")) == ["é f", "g"]
    for content, code in ((b"", "empty"), (b"\xff", "damaged")):
        (tmp_path / "x").write_bytes(content)
        with refused(CorpusError, code, uri=str(tmp_path / "x")):
            read_ids(str(tmp_path / "x"))
    with refused(CorpusError, "wrong_field", where=f"{tmp_path}/x.jsonl line 1", field="id"):
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
