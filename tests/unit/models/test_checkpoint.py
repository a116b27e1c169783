"""Checkpoints as they are met: incomplete, cut short, quantised, with several end tokens, with a larger tokenizer."""

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

from regrad.data.passages import Passage
from regrad.errors import ModelError, TokenOutOfVocabulary
from regrad.gradients.extractor import AtomExtractor
from regrad.inference.decoding import GenerationRequest, draws, generate, sample
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.meta_init import random_meta_init
from regrad.models.loading import LanguageModel, load_language_model
from tests.tools.decoded import run
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
    with pytest.raises(ModelError):
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


def test_all_end_tokens_of_generation_config_end_an_answer(tiny: LanguageModel, folder: Path) -> None:
    prompt = "Question: In which city was Les Dripen born?\nAnswer:"
    draws_11 = draws("one", 1, 12)
    written = generate(tiny, [GenerationRequest(prompt, max_new_tokens=12)])[0]
    first = tiny.model.generate(  # type: ignore[operator]
        torch.tensor([tiny.encode_prompt(prompt)]), max_new_tokens=1, do_sample=False
    )[0, -1].item()
    assert written.text and first not in tiny.end_ids
    edit_json(folder / "generation_config.json", eos_token_id=[*tiny.eos, first])
    lm = load(tiny, folder)
    assert lm.end_ids == (*tiny.eos, first) and lm.eos == tiny.eos
    assert generate(lm, [GenerationRequest(prompt, max_new_tokens=12)])[0].text == ""
    assert [heard.text for heard in run(Engine(lm), [DecodingRequest(prompt, (), 12)])] == [""]
    drawn = sample(lm, [lm.encode_prompt(prompt)], draws_11, 1e-6, 1.0, lambda text: False)[0]
    assert (drawn.text, drawn.complete) == ("", True)


@pytest.fixture
def extended(tiny: LanguageModel, folder: Path) -> LanguageModel:
    """The tiny model with a token in its tokenizer that it has no embedding for."""
    lm = load(tiny, folder)
    lm.tokenizer.add_tokens(["Zorblax"])
    lm.tokenizer.save_pretrained(str(folder))
    return load(tiny, folder)


def test_a_token_beyond_the_vocabulary_concerns_its_own_text_only(extended: LanguageModel) -> None:
    with refused(TokenOutOfVocabulary, token="Zorblax", vocabulary=2236):
        extended.encode("What is a Zorblax?")
    good = ["In which city was Les Dripen born?", "Where?"]
    engine = Engine(extended)
    with refused(TokenOutOfVocabulary, token="Zorblax"):
        run(engine, [DecodingRequest("What is a Zorblax?", (), 4)])
    alone = [heard.text for prompt in good for heard in run(Engine(extended), [DecodingRequest(prompt, (), 4)])]
    assert [heard.text for heard in run(engine, [DecodingRequest(prompt, (), 4) for prompt in good])] == alone


def test_a_passage_with_a_token_beyond_the_vocabulary_is_the_only_one_without_an_atom(extended: LanguageModel) -> None:
    meta_init = random_meta_init(extended, 0.01)
    passages = [Passage("a", "Les", "Les Dripen was born."), Passage("b", "", "The Zorblax is here.")]
    good, bad = AtomExtractor(extended, meta_init).extract(passages)
    assert good.atom is not None and not good.problem
    assert bad.atom is None and "Zorblax" in bad.problem


def test_models_that_are_loaded_at_once_leave_the_next_one_whole(tiny: LanguageModel, tiny_path: Path) -> None:
    config = tiny.config.model_copy(update={"path": str(tiny_path)})
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: load_language_model(config, "cpu").identity(), range(8)))
    assert set(found) == {tiny.identity()}
    assert load_language_model(config, "cpu").identity() == tiny.identity()
