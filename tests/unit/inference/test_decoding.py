"""Greedy decoding: requests with different updates in one batch answer as they do alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regrad.errors import ModelError, PromptTooLong
from regrad.inference.decoding import GenerationRequest, generate
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model, resolve_path
from tests.tools.refusals import refused

PROMPTS = ["Question: Where was Les Dripen born?\nAnswer:", "Passage: Ada\n x\nQuestion: Who?\nAnswer:", "a"]


def requests(lm: LanguageModel) -> list[GenerationRequest]:
    generator = torch.Generator().manual_seed(2)
    vectors = [0.3 * torch.randn(lm.subspace.size, generator=generator) for _ in range(3)]
    updates = [lm.subspace.updates(vector) for vector in (None, *vectors)]
    return [GenerationRequest(p, u, max_new_tokens=6) for p in PROMPTS for u in updates]


def test_a_mixed_batch_answers_as_one_by_one(tiny: LanguageModel) -> None:
    everything = requests(tiny)
    together = [item.text for item in generate(tiny, everything)]
    assert together == [generate(tiny, [request])[0].text for request in everything]
    assert len(set(together)) > len(PROMPTS)


def test_weights_are_untouched(tiny: LanguageModel) -> None:
    before = tiny.identity()
    generate(tiny, requests(tiny))
    assert tiny.identity() == before


def test_each_request_keeps_its_own_length(tiny: LanguageModel) -> None:
    short, long = generate(tiny, [GenerationRequest("a", (), 1), GenerationRequest("a", (), 8)])
    assert long.text.startswith(short.text)
    assert short.prompt_tokens == long.prompt_tokens == 1 + len(tiny.encode("a"))


def test_the_answer_ends_at_the_stop_string(lab_model: LanguageModel) -> None:
    prompt = lab_model.config.prompts.prompt("Where was Les Dripen born?")
    assert "\n" not in generate(lab_model, [GenerationRequest(prompt, (), 30)])[0].text


def test_a_prompt_beyond_the_context_is_refused(tiny: LanguageModel) -> None:
    with refused(PromptTooLong, context=256):
        generate(tiny, [GenerationRequest("word " * 300)])


def test_nothing_asked_nothing_answered(tiny: LanguageModel) -> None:
    assert generate(tiny, []) == []


def test_a_model_that_is_not_there_is_named() -> None:
    with refused(ModelError, "not_found", path="/nowhere/model"):
        load_language_model(ModelConfig(path="/nowhere/model"), "cpu")
    with refused(ModelError, "not_found", path="package:regrad.lab/bse"):
        load_language_model(ModelConfig(path="package:regrad.lab/bse"), "cpu")
    with refused(ModelError, "package_not_found", package="no_such_package"):
        load_language_model(ModelConfig(path="package:no_such_package/base"), "cpu")


@pytest.mark.parametrize(
    "path", ["/nowhere", "./no", "../no", "no/../no", "~/no-such", "C:\\no", "runs/no/base", "file:///no"]
)
def test_a_local_path_with_nothing_there_is_never_asked_of_the_hub(path: str) -> None:
    with refused(ModelError, "not_found", path=path):
        resolve_path(path)


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.2-1B"])
def test_a_hub_name_is_left_as_it_is(name: str) -> None:
    assert resolve_path(name) == name


def test_a_model_at_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ModelConfig(path="~/model").path == str(tmp_path / "model")
