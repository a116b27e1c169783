"""What a generator is asked while a plan measures, and where its base is: as the server would have it."""

from __future__ import annotations

import pytest

from regrad.data.passages import Passage
from regrad.errors import PromptTooLong
from regrad.inference.rows import DecodingRequest
from regrad.methods.base import NoAtoms
from regrad.methods.policies import PromptFitter
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.models.loading import LanguageModel
from regrad.planning.stages import Stopwatch, _Generating, generator_requests, gpu_parts, model_bytes, token_bytes
from regrad.retrieval.hits import Hit
from tests.tools.refusals import refused
from tests.tools.second_device import second_device, split

TOKENS = 5


def test_a_prompt_that_is_too_long_is_shortened_as_the_server_does(
    tiny: LanguageModel, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    hits = [[Hit(passage, 1.0) for passage in passages[:3]]]
    prompts = tiny.config.prompts
    shortened = prompts.prompt("Who?", passages[1::-1])  # the best stands last
    limit = len(tiny.encode_prompt(shortened)) + TOKENS
    monkeypatch.setattr(tiny, "context_length", limit)
    method = PromptOnlyConfig(name="rag").open(tiny)
    watch = Stopwatch(1, tiny.device)

    fitter = PromptFitter(tiny, prompts, "drop")
    (request,), _ = generator_requests(fitter, method, NoAtoms(), ["Who?"], hits, TOKENS, watch)
    assert (request.prompt, len(request.ids) + TOKENS) == (shortened, limit)

    with refused(PromptTooLong, passages=3, context=limit):
        generator_requests(PromptFitter(tiny, prompts, "fail"), method, NoAtoms(), ["Who?"], hits, TOKENS, watch)


def test_a_base_over_two_devices_is_measured_where_it_is(tiny: LanguageModel) -> None:
    requests = [DecodingRequest(text, (), TOKENS) for text in ("Who was born there?", "Where?")]
    watch = Stopwatch(1, tiny.device)
    whole = _Generating(tiny, requests, 24, watch).lengths()
    assert gpu_parts(tiny) == ()
    with second_device():
        split(tiny, 3)
        generating = _Generating(tiny, requests, 24, watch)
        assert generating.lengths() == whole
        _, decode = generating.curves((1, 2))
        first, second = gpu_parts(tiny)
        block = tiny.model.get_submodule("model.layers.3")
        assert second.model == 4 * sum(parameter.numel() for parameter in block.parameters())
    assert all(point.busy > 0 for point in decode.points)
    assert first.model + second.model == model_bytes(tiny)
    assert first.token == 3 * second.token == 3 * token_bytes(tiny) // 4
