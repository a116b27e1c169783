"""Requests behind virtual tokens: transformers' own answers, in any batch, their common beginning read once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regrad.errors import PromptTooLong
from regrad.inference.engine import Engine
from regrad.inference.passes import RowCache, read_pieces
from regrad.inference.rows import DecodingRequest
from regrad.inference.verification import verify_decoding
from regrad.models.loading import LanguageModel
from regrad.models.virtual_tokens import virtual_tokens
from tests.tools.decoded import PROMPTS, alone, run, update
from tests.unit.inference.test_sharing import prompt_tokens, tokens_read
from tests.unit.models.test_virtual_tokens import by_embeddings, drawn

COUNT, TOKENS = 20, 6


def behind(lm: LanguageModel, values: Tensor | None, prompt: str, **changes: object) -> DecodingRequest:
    """A request as a method's plan becomes one; without values, of the base."""
    virtual = () if values is None else virtual_tokens(lm).put(values)
    changes = {"max_new_tokens": TOKENS, "stop": (), **changes}
    return DecodingRequest(prompt, ids=(*virtual, *lm.encode_prompt(prompt)), **changes)  # type: ignore[arg-type]


@torch.inference_mode()
def reference(lm: LanguageModel, values: Tensor, prompt: str) -> str:
    """What transformers' `generate` writes after these embeddings and the prompt's."""
    embedded_1TD = lm.model.get_input_embeddings()(torch.tensor([lm.encode_prompt(prompt)]))  # type: ignore[operator]
    given_1TD = torch.cat([values[None], embedded_1TD], 1)
    written = lm.model.generate(  # type: ignore[operator]
        inputs_embeds=given_1TD,
        attention_mask=torch.ones(given_1TD.shape[:2], dtype=torch.long),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=lm.eos,
        pad_token_id=lm.pad_id,
    )
    return str(lm.tokenizer.decode(written[0], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("piece", [2048, 9])
def test_an_answer_behind_a_soft_prompt_is_transformers_own(tiny: LanguageModel, piece: int) -> None:
    values = drawn(tiny, COUNT)
    requests = [behind(tiny, values, prompt) for prompt in PROMPTS]
    answers = [heard.text for heard in run(Engine(tiny, prefill_tokens=piece), requests)]
    assert answers == [reference(tiny, values, prompt) for prompt in PROMPTS]
    assert answers != [alone(tiny, behind(tiny, None, prompt)) for prompt in PROMPTS]


@torch.inference_mode()
def test_the_logits_behind_a_soft_prompt_are_those_of_its_embeddings(tiny: LanguageModel) -> None:
    values, ids = drawn(tiny, COUNT), tiny.encode_prompt(PROMPTS[0])
    whole = [*virtual_tokens(tiny).put(values), *ids]
    cache = RowCache(4, 1 << 10)
    cache.reserve(1, len(whole))
    windows, kernels = tiny.architecture.windows(tiny.text_config), verify_decoding(tiny).kernels
    for start, end in ((0, 15), (15, len(whole))):  # the first piece ends among the virtual tokens
        found_1V = read_pieces(tiny, cache, windows, slice(0, 1), [whole[start:end]], [start], kernels)
    torch.testing.assert_close(found_1V[0], by_embeddings(tiny, values, ids)[-1], rtol=1e-4, atol=1e-4)


def mixed(lm: LanguageModel) -> list[DecodingRequest]:
    """Requests of two soft prompts, of none, and with updates of other methods, with and without drafts to take."""
    one, other = drawn(lm, COUNT), drawn(lm, 3, 1)
    return [
        *(behind(lm, one, prompt) for prompt in PROMPTS[:3]),
        behind(lm, None, PROMPTS[0]),
        behind(lm, None, PROMPTS[2], updates=update(lm, 1)),
        behind(lm, None, PROMPTS[4], updates=update(lm, 2, acts_on="answer")),
        behind(lm, other, PROMPTS[0]),
        behind(lm, one, PROMPTS[3], updates=update(lm, 3), sources=(PROMPTS[3],)),
    ]


@pytest.mark.parametrize("drafts", [0, 4])
@pytest.mark.parametrize("steps", [[0] * 8, [0, 1, 1, 2, 0, 3, 3, 4]], ids=["together", "one after the other"])
def test_a_mixed_batch_gives_each_the_answer_that_it_gets_alone(
    tiny64: LanguageModel, drafts: int, steps: list[int]
) -> None:
    requests = mixed(tiny64)
    expected = [alone(tiny64, request) for request in requests]
    heard = run(Engine(tiny64, prefill_tokens=30, draft_tokens=drafts), requests, steps)
    assert [item.text for item in heard] == expected
    assert len(set(expected)) >= 6
    counts = [item.finished.prompt_tokens for item in heard if item.finished]
    assert counts == [len(request.ids) for request in requests], "virtual tokens are tokens of the prompt"


def test_what_several_read_behind_one_soft_prompt_is_read_once(tiny64: LanguageModel) -> None:
    values = drawn(tiny64, COUNT)
    requests = [behind(tiny64, values, prompt) for prompt in PROMPTS]
    expected = [alone(tiny64, request) for request in requests]
    with tokens_read(tiny64, 3) as once:
        assert [item.text for item in run(Engine(tiny64), requests)] == expected
    with tokens_read(tiny64, 3) as apart:
        assert [item.text for item in run(Engine(tiny64, share_prompts=False), requests)] == expected
    bos = 1 if tiny64.bos else 0
    assert once[0] == COUNT + bos, "a pass of its own for the virtual tokens, and the start token behind them"
    longest = max(prompt_tokens(tiny64, prompt) for prompt in PROMPTS)
    assert apart[0] == len(PROMPTS) * (COUNT + longest)


def test_a_prompt_that_fits_only_without_its_soft_prompt_is_refused(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = behind(tiny, drawn(tiny, COUNT), PROMPTS[0])
    monkeypatch.setattr(tiny, "context_length", prompt_tokens(tiny, PROMPTS[0]) + TOKENS)
    with pytest.raises(PromptTooLong):
        Engine(tiny).submit(request, lambda _: None)
    Engine(tiny).submit(behind(tiny, None, PROMPTS[0]), lambda _: None)
