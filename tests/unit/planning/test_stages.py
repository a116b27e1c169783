"""What a generator is asked while a plan measures: the prompts that the server would give it."""

from __future__ import annotations

import pytest

from regrad.data.passages import Passage
from regrad.errors import PromptTooLong
from regrad.methods.base import NoAtoms
from regrad.methods.policies import PromptFitter
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.models.loading import LanguageModel
from regrad.planning.stages import Stopwatch, generator_requests
from regrad.retrieval.base import Hit
from tests.tools.refusals import refused

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
