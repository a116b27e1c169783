"""Updates of a bank's passages as PEFT adapters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from regrad.bank.format import BankKind, Layout
from regrad.bank.io import peft as peft_export
from regrad.bank.io.peft import export_start, export_update
from regrad.bank.reader import BankReader
from regrad.cli import bank as bank_cli
from regrad.errors import AtomNotFound, BankError, FingerprintMismatch, MetaInitError, RegradError
from regrad.meta_init import MetaInit
from regrad.models.config import SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model
from tests.tools.banks import PASSAGES, writer
from tests.tools.refusals import refused

IDS = torch.tensor([[1, 5, 9, 4]])
COUNT = 3


def fill(uri: str, meta_init: MetaInit, kind: BankKind = "gradient", fingerprint: str | None = None) -> str:
    layout = Layout(
        kind=kind,
        fingerprint=fingerprint or meta_init.fingerprint,
        codec="float32",
        subspace=meta_init.subspace.to_json(),
    )
    values = torch.randn(COUNT, meta_init.subspace.size, generator=torch.Generator().manual_seed(1)) * 0.05
    writer(uri, layout, PASSAGES[:COUNT], values).commit()
    return uri


@pytest.fixture
def meta_init(tiny: LanguageModel) -> MetaInit:
    generator = torch.Generator().manual_seed(2)
    phi0 = torch.randn(tiny.subspace.size, generator=generator) * 0.1
    step_sizes = torch.rand(len(tiny.subspace.shapes), generator=generator) + 0.5
    return MetaInit(tiny.config, tiny.identity(), tiny.subspace, phi0, step_sizes)


@pytest.fixture
def saved(meta_init: MetaInit, tmp_path: Path) -> str:
    meta_init.save(tmp_path / "meta-init")
    return str(tmp_path / "meta-init")


@pytest.fixture
def uri(meta_init: MetaInit, tmp_path: Path) -> str:
    return fill(str(tmp_path / "bank"), meta_init)


def peft_logits(adapter: Path, tiny_path: Path) -> Tensor:
    base = AutoModelForCausalLM.from_pretrained(tiny_path)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        return cast(Tensor, model(input_ids=IDS).logits)


def our_logits(lm: LanguageModel, vector_P: Tensor | None) -> Tensor:
    with torch.no_grad(), lm.lora.applied(vector_P):
        return cast(Tensor, lm.model(input_ids=IDS).logits)


@pytest.mark.parametrize(("ids", "gamma"), [(["p1"], 1.0), (["p2", "p0", "p1"], 1.0), (["p0", "p2"], 0.5)])
def test_peft_answers_with_an_exported_update_as_regrad_does(
    tiny: LanguageModel,
    tiny_path: Path,
    meta_init: MetaInit,
    uri: str,
    saved: str,
    tmp_path: Path,
    ids: list[str],
    gamma: float,
) -> None:
    export_update(uri, str(tmp_path / "out"), ids, saved, gamma=gamma)
    with BankReader(uri) as bank:
        update_P = meta_init.update(bank.read(ids).sum(0), gamma)
    theirs = peft_logits(tmp_path / "out", tiny_path)
    torch.testing.assert_close(theirs, our_logits(tiny, update_P), rtol=1e-5, atol=1e-5)
    assert (theirs - our_logits(tiny, meta_init.phi0)).abs().max() > 1e-3
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (str(tiny_path), 4, 8)
    notes = json.loads((tmp_path / "out/regrad.json").read_text())
    assert (notes["passage_ids"], notes["gradient"], notes["gamma"]) == (ids, meta_init.fingerprint, gamma)


def test_peft_answers_with_an_exported_start(
    tiny: LanguageModel, tiny_path: Path, meta_init: MetaInit, uri: str, saved: str, tmp_path: Path
) -> None:
    export_start(uri, str(tmp_path / "out"), saved)
    theirs = peft_logits(tmp_path / "out", tiny_path)
    torch.testing.assert_close(theirs, our_logits(tiny, meta_init.phi0), rtol=1e-5, atol=1e-5)


def test_updates_that_act_on_the_answer_are_not_exported(meta_init: MetaInit, uri: str, tmp_path: Path) -> None:
    """Another server would apply them to the prompt as well."""
    place = str(tmp_path / "activated")
    replace(meta_init, acts_on="answer").save(place)
    with refused(MetaInitError, "acts_on_answer", uri=place):
        export_update(uri, str(tmp_path / "out"), ["p1"], place)
    with refused(MetaInitError, "acts_on_answer", uri=place):
        export_start(uri, str(tmp_path / "out"), place)
    assert not (tmp_path / "out").exists()


def test_exported_adapters_are_placed_side_by_side(
    tiny: LanguageModel, tiny_path: Path, meta_init: MetaInit, tmp_path: Path
) -> None:
    uri = fill(str(tmp_path / "adapters"), meta_init, "adapter", "a" * 16)
    with refused(BankError, "no_base_model", uri=uri):
        export_update(uri, str(tmp_path / "out"), ["p0", "p1"])
    export_update(uri, str(tmp_path / "out"), ["p0", "p1"], base=str(tiny_path))
    wide = load_language_model(
        tiny.config.model_copy(update={"subspace": SubspaceConfig(rank=8, alpha=16)})
    )  # of the same scaling
    with BankReader(uri) as bank:
        one, two = (tiny.subspace.unflatten(atom_P) for atom_P in bank.read(["p0", "p1"]))
    both = {name: torch.cat([one[name], two[name]], 1 if name.endswith(".B") else 0) for name in one}
    expected = our_logits(wide, wide.subspace.flatten(both))
    torch.testing.assert_close(peft_logits(tmp_path / "out", tiny_path), expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_exported_leaves_nothing(
    meta_init: MetaInit, uri: str, saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    with refused(AtomNotFound, "", passage_ids=["elsewhere", "other"]):
        export_update(uri, out, ["p0", "elsewhere", "other"], saved)
    with refused(BankError, "bad_ids", repeated=["p0"]):
        export_update(uri, out, ["p0", "p1", "p0"], saved)
    with refused(BankError, "bad_ids", repeated=[]):
        export_update(uri, out, [], saved)
    with refused(BankError, "no_meta_init", uri=uri):
        export_update(uri, out, ["p0"])
    with refused(BankError, "not_finite"):
        export_update(uri, out, ["p0"], saved, gamma=float("inf"))
    other = fill(str(tmp_path / "other"), meta_init, fingerprint="0" * 16)
    for export in (lambda: export_update(other, out, ["p0"], saved), lambda: export_start(other, out, saved)):
        with pytest.raises(FingerprintMismatch):
            export()

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(peft_export, "save_adapter", full)
        with pytest.raises((OSError, RegradError)):
            export_update(uri, out, ["p0"], saved)
    assert {path.name for path in tmp_path.iterdir()} == {"bank", "meta-init", "other"}


def test_a_place_that_exists_is_left_alone(uri: str, saved: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    export_update(uri, out, ["p0"], saved)
    before = (tmp_path / "out/adapter_model.safetensors").read_bytes()
    with refused(BankError, "output_exists", uri=out):
        export_update(uri, out, ["p1"], saved)
    with refused(BankError, "output_exists", uri=out):
        export_start(uri, out, saved)
    assert (tmp_path / "out/adapter_model.safetensors").read_bytes() == before


def test_the_command_takes_ids_and_says_what_is_missing(uri: str, saved: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(bank_cli.bank, ["export", uri, *arguments])
        return result.exit_code, result.output

    (tmp_path / "ids.txt").write_text("p1\n")
    more = ("--id", "p0", "--ids-from", str(tmp_path / "ids.txt"), "--base", "org/model")
    code, output = run(str(tmp_path / "out"), "--peft", "--meta-init", saved, *more)
    assert (code, output) == (0, f"wrote the update of 2 passages to {tmp_path / 'out'}\n")
    assert json.loads((tmp_path / "out/regrad.json").read_text())["passage_ids"] == ["p0", "p1"]
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == "org/model"
    assert run(str(tmp_path / "start"), "--peft", "--meta-init", saved, "--phi0")[0] == 0
    assert run(str(tmp_path / "none"), "--peft", "--meta-init", saved)[0] == 2
    assert run(str(tmp_path / "none"), "--peft", "--meta-init", saved, "--phi0", "--id", "p0")[0] == 2
    assert run(str(tmp_path / "none"), "--gamma", "2")[0] == 2
    assert run(str(tmp_path / "some"), "--id", "p2")[0] == 0
    assert not (tmp_path / "none").exists()
