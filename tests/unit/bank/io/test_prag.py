"""PRAG's adapters, imported into a bank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from regrad.bank.io.prag import import_adapters
from regrad.bank.reader import BankReader
from regrad.errors import BankError
from tests.tools.banks import PASSAGES
from tests.tools.foreign_atoms import Bomb, lines, no_bank, quarantine, write_adapter
from tests.tools.refusals import refused


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


def set_keys(folder: Path, settings: dict[str, Any]) -> None:
    """As if another version of PEFT had written the adapter."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha_pattern": {"up_proj": 4}},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"trainable_token_indices": [5]},
        {"alora_invocation_tokens": [1, 2]},
        {"use_qalora": True, "qalora_group_size": 16},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
        {"enable_lora": [True, False, True]},
        {"a_key_of_the_next_version": 0.5},
    ],
)
def test_settings_with_which_an_adapter_does_more_are_refused_by_name(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_adapter(tmp_path / "a/0", 0)
    set_keys(tmp_path / "a/0", settings)
    with refused(BankError, "not_plain_lora") as info:
        import_adapters(str(tmp_path / "a"), str(tmp_path / "b"))
    assert set(info.value.fields["settings"]) <= set(settings)  # type: ignore[call-overload]
    assert no_bank(tmp_path / "b")


PEFT_NOW: dict[str, Any] = {
    **dict.fromkeys(("alora_invocation_tokens", "arrow_config", "corda_config", "exclude_modules", "kasa_config")),
    **dict.fromkeys(("layer_replication", "layers_pattern", "layers_to_transform", "megatron_config", "revision")),
    **dict.fromkeys(("modules_to_save", "target_parameters", "trainable_token_indices", "use_bdlora", "velora_config")),
    "alpha_pattern": {},
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"},
    "bias": "none",
    "ensure_weight_tying": False,
    "eva_config": {"rho": 2.0},
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": "eva",
    "loftq_config": {},
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_core": "megatron.core",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "rank_pattern": {},
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}
PEFT_EARLY: dict[str, Any] = {
    "bias": "none",
    "enable_lora": None,
    "fan_in_fan_out": True,
    "inference_mode": True,
    "lora_dropout": 0.1,
    "merge_weights": False,
    "modules_to_save": None,
    "target_modules": ["c_fc"],
}


@pytest.mark.parametrize("settings", [PEFT_NOW, PEFT_EARLY, {"init_lora_weights": False}])
def test_settings_that_change_nothing_in_what_a_and_b_do_are_taken(tmp_path: Path, settings: dict[str, Any]) -> None:
    written = write_adapter(tmp_path / "a/0", 0)
    set_keys(tmp_path / "a/0", settings)
    import_adapters(str(tmp_path / "a"), str(tmp_path / "b"))
    bank = BankReader(str(tmp_path / "b"))
    found = bank.manifest.parsed_subspace().unflatten(bank.read(["0"])[0])
    assert all(found[name].equal(tensor) for name, tensor in written.items())


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
