"""Decoding a batch to its end: rows answer as they do alone and as with transformers, greedily and with given draws."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regrad.errors import ModelError, PromptTooLong
from regrad.inference.decoding import GenerationRequest, decode_all, draws, generate, outcomes, sample
from regrad.inference.rows import DecodingListener, DecodingRequest, Finished
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.local_files import resolve_path
from tests.tools.reference_decoding import reference_generate
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


def test_greedy_answers_are_those_of_transformers_generate(tiny: LanguageModel, lab_model: LanguageModel) -> None:
    for lm in (tiny, lab_model):
        assert generate(lm, requests(lm)) == reference_generate(lm, requests(lm))


def test_no_hook_stays_on_the_model(tiny: LanguageModel) -> None:
    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in tiny.model.modules())

    before = hooks()
    generate(tiny, requests(tiny))
    with refused(PromptTooLong, context=256):
        generate(tiny, [*requests(tiny), GenerationRequest("word " * 300)])
    assert hooks() == before


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


class FailingEngine:
    """Ends the second request with an answer and the others with errors, the last request first."""

    def __init__(self) -> None:
        self._listeners: list[DecodingListener] = []

    def submit(self, request: DecodingRequest, listener: DecodingListener) -> None:
        self._listeners.append(listener)

    def step(self) -> bool:
        if not self._listeners:
            return False
        number = len(self._listeners) - 1
        self._listeners.pop()(ANSWER if number == 1 else ModelError(f"request {number}", code="failed", number=number))
        return True


ANSWER = Finished("yes", "stop", 1, 1, 0.0, 0.0, 0.0, 1)


def test_of_several_errors_that_of_the_first_request_is_raised_whichever_came_first() -> None:
    asked = [DecodingRequest(prompt) for prompt in PROMPTS]
    answered: list[str] = []
    first, second, third = outcomes(FailingEngine(), asked, lambda: answered.append("one"))  # type: ignore[arg-type]
    assert isinstance(first, ModelError) and second == ANSWER and isinstance(third, ModelError)
    assert answered == ["one"]
    with refused(ModelError, "failed", number=0):
        decode_all(FailingEngine(), asked)  # type: ignore[arg-type]


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


def texts(lm: LanguageModel, prompts: list[str], numbers: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> list:
    ids = [lm.encode_prompt(prompt) for prompt in prompts]
    return [item.text for item in sample(lm, ids, numbers, temperature, top_p, lambda _: False)]


def test_a_row_gets_the_same_text_alone_and_in_any_batch(tiny: LanguageModel) -> None:
    numbers = torch.cat([draws(prompt, 2, 8) for prompt in PROMPTS])
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    together = texts(tiny, prompts, numbers)
    assert len(set(together)) == len(together)
    for row in range(len(prompts)):
        assert texts(tiny, prompts[row : row + 1], numbers[row : row + 1]) == [together[row]]
    order = [4, 2, 0, 5, 1, 3]
    assert texts(tiny, [prompts[i] for i in order], numbers[order]) == [together[i] for i in order]


def test_numbers_depend_on_their_key_alone() -> None:
    assert draws("0/a", 2, 5).equal(draws("0/a", 2, 5))
    assert not draws("0/a", 2, 5).equal(draws("1/a", 2, 5))
    assert draws("0/a", 2, 5).tolist()[0][0] == 0.6049853684112572, "the same on every machine"


def test_tokens_come_as_often_as_the_model_says(tiny: LanguageModel) -> None:
    """2,000 draws of the first token against softmax: the largest deviation is within five standard errors."""
    rows, prompt = 2000, "a"
    found = Counter(texts(tiny, [prompt] * rows, draws("frequencies", rows, 1)))
    ids = torch.tensor([tiny.bos + tiny.encode(prompt)])
    probabilities = tiny.logits(tiny.hidden(ids)[0, -1]).softmax(-1)
    best = probabilities.topk(5)
    for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        error = (probability * (1 - probability) / rows) ** 0.5
        assert abs(found[tiny.tokenizer.decode([token])] / rows - probability) < 5 * error


def test_without_temperature_or_with_a_small_nucleus_it_is_greedy(tiny: LanguageModel) -> None:
    greedy = generate(tiny, [GenerationRequest(prompt, (), 6) for prompt in PROMPTS])
    cold = texts(tiny, PROMPTS, draws("x", 3, 6), temperature=1e-3)
    narrow = texts(tiny, PROMPTS, draws("x", 3, 6), top_p=1e-6)
    assert cold == narrow
    assert [text.lstrip().split("\n")[0].strip() for text in cold] == [item.text for item in greedy]


def test_a_row_that_is_done_says_so(tiny: LanguageModel) -> None:
    ended, cut = (
        sample(tiny, [tiny.encode_prompt("a")], draws("y", 1, 4), 1.0, 1.0, lambda _, done=done: done)[0]
        for done in (True, False)
    )
    assert ended.complete
    assert not cut.complete
    assert cut.text.startswith(ended.text)
    assert sample(tiny, [], draws("y", 0, 4), 1.0, 1.0, lambda _: True) == []
