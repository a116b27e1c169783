"""Checkpoints as they are met: incomplete, cut short, quantised, with weights that have no place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regrad.errors import ModelError
from regrad.meta_init import random_meta_init
from regrad.models.loading import LanguageModel, load_language_model
from regrad.training.meta.task_plan import Lengths
from tests.tools.refusals import refused

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_path, tmp_path / "model"))


def load(tiny: LanguageModel, folder: Path) -> LanguageModel:
    return load_language_model(tiny.config.model_copy(update={"path": str(folder)}), "cpu")


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def edit_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}))


def test_a_checkpoint_without_one_of_its_weights_is_refused_by_name(tiny: LanguageModel, folder: Path) -> None:
    lost = "model.layers.1.mlp.down_proj.weight"
    edit_weights(folder, lambda weights: weights.pop(lost))
    with refused(ModelError, "missing_keys", path=str(folder), tensors=[lost]) as info:
        load(tiny, folder)
    assert lost in str(info.value)


def test_a_head_that_is_neither_there_nor_tied_is_missing(tiny: LanguageModel, folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("lm_head.weight", None))
    edit_json(folder / "config.json", tie_word_embeddings=False)
    with refused(ModelError, "missing_keys", tensors=["lm_head.weight"]):
        load(tiny, folder)


def test_a_weight_of_another_shape_is_refused(tiny: LanguageModel, folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(3)}))
    with refused(ModelError, "mismatched_keys", tensors=["model.norm.weight"]):
        load(tiny, folder)


def test_a_weight_that_is_not_finite_is_refused_by_name(tiny: LanguageModel, folder: Path) -> None:
    name = "model.embed_tokens.weight"
    edit_weights(folder, lambda weights: weights[name][5].fill_(torch.nan))
    with refused(ModelError, "not_finite", tensor=name):
        load(tiny, folder)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_that_is_cut_short_is_refused_by_name(tiny: LanguageModel, folder: Path, kept: int) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:kept])
    with refused(ModelError, "weights_damaged", file=WEIGHTS):
        load(tiny, folder)


def test_a_pointer_of_git_lfs_is_not_taken_for_the_weights(tiny: LanguageModel, folder: Path) -> None:
    (folder / WEIGHTS).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    with refused(ModelError, "not_fetched", file=WEIGHTS) as info:
        load(tiny, folder)
    assert "git lfs pull" in str(info.value)


@pytest.mark.parametrize("method", ["bitsandbytes", "awq", "gptq", "compressed-tensors", "fp8"])
def test_a_quantised_model_is_refused_before_it_is_read(tiny: LanguageModel, folder: Path, method: str) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})
    (folder / WEIGHTS).unlink()
    with refused(ModelError, "quantised", method=method):
        load(tiny, folder)


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_no_base_model(tiny: LanguageModel, folder: Path, tmp_path: Path, whole: bool) -> None:
    random_meta_init(tiny, 0.01).save(tmp_path / "adapter")
    if whole:
        shutil.copy(tmp_path / "adapter/adapter_config.json", folder)
    path = folder if whole else tmp_path / "adapter"
    with refused(ModelError, "is_adapter", path=str(path), base=tiny.config.path):
        load(tiny, path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", '{"version": "9"}'),
        ("config.json", '{"model_type": "llama", "hidden_size": "large"}'),
    ],
)
def test_files_that_are_damaged_are_an_error_of_ours(
    tiny: LanguageModel, folder: Path, file: str, content: str
) -> None:
    """Whatever class the libraries raise: another one would be taken for a lost worker, and tried again."""
    (folder / file).write_text(content)
    with refused(ModelError, "not_loaded", path=str(folder)):
        load(tiny, folder)
    with refused(ModelError, "not_loaded"):
        Lengths.of(tiny.config.model_copy(update={"path": str(folder)}))


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "config.json", "tokenizer_config.json", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("content", ["{", "", "[]", "null"])
def test_a_file_that_is_no_json_object_is_named(tiny: LanguageModel, folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    with refused(ModelError, "json_damaged", path=str(folder), file=file):
        load(tiny, folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model", "config.json", "model.safetensors.index.json"])
def test_a_pointer_of_git_lfs_is_not_taken_for_any_file(tiny: LanguageModel, folder: Path, file: str) -> None:
    (folder / file).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    with refused(ModelError, "not_fetched", file=file):
        load(tiny, folder)


def test_only_the_weights_that_are_read_must_be_there(tiny: LanguageModel, folder: Path) -> None:
    """Mistral's repositories hold the weights twice, and people fetch one of the two."""
    (folder / "consolidated.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert load(tiny, folder).identity() == tiny.identity()


def split(tiny: LanguageModel, folder: Path) -> list[Path]:
    (folder / WEIGHTS).unlink()
    tiny.model.save_pretrained(str(folder), max_shard_size="60KB")  # type: ignore[operator]
    return sorted(folder.glob("*.safetensors"))


def test_a_missing_shard_is_named(tiny: LanguageModel, folder: Path) -> None:
    shards = split(tiny, folder)
    assert len(shards) > 2 and load(tiny, folder).identity() == tiny.identity()
    shards[1].unlink()
    with refused(ModelError, "weights_not_found", file=shards[1].name):
        load(tiny, folder)


@pytest.mark.parametrize(
    ("added", "shape"),
    [
        ("model.layers.0.self_attn.q_norm.weight", (8,)),
        ("model.layers.0.self_attn.q_proj.bias", (32,)),
        ("model.layers.0.mlp.up_proj.weight_scale", (1,)),
        ("model.layers.4.mlp.up_proj.weight", (48, 32)),
        ("model.layers.0.mlp.up_proj.lora_A.weight", (2, 32)),
        ("model.norm.bias", (32,)),
        ("lm_head.bias", (2236,)),
    ],
)
def test_weights_that_the_model_has_no_place_for_are_refused(
    tiny: LanguageModel, folder: Path, added: str, shape: tuple[int, ...]
) -> None:
    """transformers drops them: the weights of another kind of model, more blocks, scales of a quantised one."""
    edit_weights(folder, lambda weights: weights.update({added: torch.ones(shape)}))
    with refused(ModelError, "unexpected_keys", path=str(folder), tensors=[added]):
        load(tiny, folder)


@pytest.mark.parametrize(
    "added", ["score.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "vision_tower.layers.0.q_proj.weight"]
)
def test_weights_beside_the_language_model_may_be_left_out(tiny: LanguageModel, folder: Path, added: str) -> None:
    edit_weights(folder, lambda weights: weights.update({added: torch.ones(3)}))
    assert load(tiny, folder).identity() == tiny.identity()


def test_blocks_that_predict_further_tokens_may_be_left_out(tiny: LanguageModel, folder: Path) -> None:
    added = {f"model.layers.4.{name}": torch.ones(3) for name in ("eh_proj.weight", "mlp.up_proj.weight")}
    edit_weights(folder, lambda weights: weights.update(added))
    edit_json(folder / "config.json", num_nextn_predict_layers=1)
    assert load(tiny, folder).identity() == tiny.identity()


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8, torch.uint32])
def test_quantised_weights_are_known_by_their_type(tiny: LanguageModel, folder: Path, kind: torch.dtype) -> None:
    """As in checkpoints whose config.json does not say so; transformers would read them as they are, without scales."""
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(folder, lambda weights: weights.update({name: torch.ones(48, 32).to(kind)}))
    with refused(ModelError, "quantised") as info:
        load(tiny, folder)
    assert name in str(info.value)


def test_weights_that_are_packed_are_quantised(tiny: LanguageModel, folder: Path) -> None:
    """As of compressed-tensors, whose older settings transformers does not know."""
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(
        folder, lambda weights: (weights.pop(name), weights.update({f"{name}_packed": torch.ones(48, 4).int()}))
    )
    with refused(ModelError, "quantised"):
        load(tiny, folder)


def test_a_model_without_a_tokenizer_is_told_so(tiny: LanguageModel, folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with refused(ModelError, "no_tokenizer", path=str(folder)):
        load(tiny, folder)


def test_a_model_whose_tokens_see_those_after_them_is_refused(tiny: LanguageModel, folder: Path) -> None:
    """Embedding models are saved as language models, and would be trained on tokens that they can see."""
    edit_json(folder / "config.json", is_causal=False)
    with refused(ModelError, "not_causal", model="LlamaForCausalLM"):
        load(tiny, folder)


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantised"),
        ({"model_type": "mamba2"}, "unsupported_family"),
        ({"layer_types": ["linear_attention"] * 4}, "unknown_layers"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_cluster_starts(
    tiny: LanguageModel, folder: Path, config: dict[str, Any], code: str
) -> None:
    if "model_type" in config:
        (folder / "config.json").unlink()
    edit_json(folder / "config.json", **config)
    with refused(ModelError, code):
        Lengths.of(tiny.config.model_copy(update={"path": str(folder)}))


@pytest.mark.slow
def test_models_that_are_loaded_at_once_leave_the_next_one_whole(tiny: LanguageModel, tiny_path: Path) -> None:
    config = tiny.config.model_copy(update={"path": str(tiny_path)})
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: load_language_model(config, "cpu").identity(), range(8)))
    assert set(found) == {tiny.identity()}
    assert load_language_model(config, "cpu").identity() == tiny.identity()
