"""GGUF files as base models: the weights that they stand for, made once, or one sentence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from regrad.errors import ModelError
from regrad.inference.verification import verify_decoding
from regrad.models import gguf_file
from regrad.models.config import ModelConfig
from regrad.models.gguf_file import dequantised
from regrad.models.loading import LanguageModel, load_language_model
from tests.tools.gguf_model import write_gguf
from tests.tools.random_models import random_model
from tests.tools.refusals import refused


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGRAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def model() -> LlamaForCausalLM:
    return random_model("llama", hidden_size=64, intermediate_size=96)  # type: ignore[return-value]


@pytest.fixture
def file(model: LlamaForCausalLM, tiny: LanguageModel, tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "tiny.Q8_0.gguf"
    write_gguf(path, model, tiny.tokenizer)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("given", ["file", "directory"])
def test_a_gguf_is_the_model_that_it_was_made_of_up_to_its_rounding(
    file: Path, given: str, model: LlamaForCausalLM, tiny: LanguageModel
) -> None:
    config = ModelConfig(path=str(file if given == "file" else file.parent), prompts=tiny.config.prompts)
    lm = load_language_model(config, "cpu")
    verify_decoding(lm)
    text = "In which city was Les Dripen born?"
    assert lm.encode_prompt(text) == tiny.encode_prompt(text)
    assert (lm.end_ids, lm.eos, lm.bos) == (tiny.end_ids, tiny.eos, tiny.bos)
    for name, weights in model.named_parameters():
        found = lm.model.get_parameter(name)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, weights, rtol=0, atol=float(weights.detach().abs().max()) / 127)


@pytest.mark.slow
def test_it_is_dequantised_once_and_has_one_identity(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(path=str(file))
    identity = load_language_model(config, "cpu").identity()
    monkeypatch.setattr(gguf_file, "_convert", lambda *_: pytest.fail("it was there already"))
    moved = file.rename(file.with_name("other.gguf"))
    assert load_language_model(ModelConfig(path=str(moved)), "cpu").identity() == identity
    assert len(list(cache.iterdir())) == 1


@pytest.mark.slow
def test_two_at_once_leave_one_directory(file: Path, cache: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(dequantised, [file, file])
    assert first == second and list(cache.iterdir()) == [first]


def test_what_failed_leaves_nothing_behind(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path, target: Path) -> None:
        (target / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_file, "_convert", fail)
    with pytest.raises(OSError, match="No space left"):
        dequantised(file)
    assert list(cache.iterdir()) == []


def test_an_architecture_that_transformers_does_not_know_is_named(
    model: LlamaForCausalLM, tiny: LanguageModel, tmp_path: Path
) -> None:
    path = tmp_path / "strange.gguf"
    write_gguf(path, model, tiny.tokenizer, architecture="plaid")
    with refused(ModelError, "gguf_unreadable", path=str(path)) as info:
        load_language_model(ModelConfig(path=str(path)), "cpu")
    assert "plaid" in str(info.value)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip", b"version https://git-lfs.github.com/spec/v1"])
def test_a_file_that_is_no_gguf_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with refused(ModelError, "not_gguf", path=str(path)):
        load_language_model(ModelConfig(path=str(path)), "cpu")


def test_a_gguf_that_is_cut_short_is_refused(file: Path, cache: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with refused(ModelError, "gguf_unreadable", path=str(file)):
        load_language_model(ModelConfig(path=str(file)), "cpu")
    assert list(cache.iterdir()) == []


def test_of_several_files_in_a_directory_one_must_be_chosen(file: Path) -> None:
    file.with_name("tiny.Q4_0.gguf").write_bytes(file.read_bytes())
    with refused(ModelError, "several_gguf", path=str(file.parent)):
        load_language_model(ModelConfig(path=str(file.parent)), "cpu")
    assert load_language_model(ModelConfig(path=str(file)), "cpu").context_length


def test_a_path_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with refused(ModelError, "not_found", path=str(tmp_path / "no.gguf")):
        load_language_model(ModelConfig(path=str(tmp_path / "no.gguf")), "cpu")
