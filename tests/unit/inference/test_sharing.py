"""What prompts begin with alike is read once by the lower blocks, and each gets the answer that it gets alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from regrad.inference import verification
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.meta_init import MetaInit
from regrad.methods.regrad import BoundMetaInit
from regrad.models.config import SubspaceConfig
from regrad.models.loading import LanguageModel
from regrad.models.subspace import find_subspace
from tests.tools.decoded import PROMPTS, alone, run, update

EXAMPLES = "Passage: Ada\n Ada was born in London and lived there for a long time.\nQuestion: Who?\nAnswer: Ada\n"


@contextmanager
def tokens_read(lm: LanguageModel, block: int) -> Iterator[list[int]]:
    """Of every pass of a block, rows times tokens; only of those that compute."""
    found: list[int] = []
    layer: Any = lm.model.get_submodule(f"model.layers.{block}.mlp")
    handle = layer.register_forward_hook(lambda _, inputs, __: found.append(inputs[0].shape[:2].numel()))
    try:
        yield found
    finally:
        handle.remove()


def prompt_tokens(lm: LanguageModel, prompt: str) -> int:
    return len(lm.encode_prompt(prompt))


def test_one_prompt_under_several_updates_is_read_once_below_them(tiny64: LanguageModel) -> None:
    requests = [DecodingRequest(EXAMPLES + PROMPTS[0], u, 5) for u in ((), *(update(tiny64, i) for i in range(4)))]
    expected = [alone(tiny64, request) for request in requests]
    length = prompt_tokens(tiny64, requests[0].prompt)
    engine = Engine(tiny64)
    with tokens_read(tiny64, 0) as lower, tokens_read(tiny64, 3) as upper:
        assert [item.text for item in run(engine, requests)] == expected
    assert (lower[0], upper[0]) == (length, 5 * length)
    assert len(set(expected)) > 2


def test_what_prompts_begin_with_is_read_once(tiny64: LanguageModel) -> None:
    requests = [DecodingRequest(EXAMPLES + prompt, update(tiny64, i), 5) for i, prompt in enumerate(PROMPTS)]
    expected = [alone(tiny64, request) for request in requests]
    with tokens_read(tiny64, 0) as lower:
        assert [item.text for item in run(Engine(tiny64), requests)] == expected
    assert 16 <= lower[0] <= prompt_tokens(tiny64, EXAMPLES)
    with tokens_read(tiny64, 0) as apart:
        assert [item.text for item in run(Engine(tiny64, share_prompts=False), requests)] == expected
    assert apart[0] > 5 * lower[0]


@pytest.mark.parametrize("piece", [8, 30])
def test_a_prompt_in_pieces_is_shared_piece_by_piece(tiny64: LanguageModel, piece: int) -> None:
    prompts = [EXAMPLES + PROMPTS[0]] * 2 + [EXAMPLES + PROMPTS[4], PROMPTS[3]]
    requests = [DecodingRequest(prompt, update(tiny64, i), 4) for i, prompt in enumerate(prompts)]
    expected = [alone(tiny64, request) for request in requests]
    engine = Engine(tiny64, prefill_tokens=piece)
    assert [item.text for item in run(engine, requests, [0, 0, 1, 2])] == expected


def test_below_an_update_that_reaches_lower_blocks_nothing_is_shared(tiny64: LanguageModel) -> None:
    everywhere = find_subspace(tiny64.model, SubspaceConfig(layers="all", projections=("up_proj",), rank=2))
    requests = [DecodingRequest(EXAMPLES, update(tiny64, i, subspace=everywhere), 5) for i in range(3)]
    requests.append(DecodingRequest(EXAMPLES, (), 5))
    expected = [alone(tiny64, request) for request in requests]
    with tokens_read(tiny64, 0) as lower:
        assert [item.text for item in run(Engine(tiny64), requests)] == expected
    assert lower[0] == 4 * prompt_tokens(tiny64, EXAMPLES)


def test_a_model_that_does_not_bear_it_reads_row_by_row(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    enter = tiny.blocks.enter
    monkeypatch.setattr(tiny.blocks, "enter", lambda ids, **inputs: enter(ids, **inputs) * 1.5)  # type: ignore[operator]
    monkeypatch.setattr(verification, "_VERIFIED", {})
    assert not verification.verify_decoding(tiny).shares
    requests = [DecodingRequest(PROMPTS[0], update(tiny, i), 5) for i in range(2)]
    assert [item.text for item in run(Engine(tiny), requests)] == [alone(tiny, request) for request in requests]


def test_leaving_one_out_reads_the_text_once_below_the_updates(tiny: LanguageModel, meta_init: MetaInit) -> None:
    bound = BoundMetaInit(tiny, meta_init)
    updates = [torch.randn(tiny.subspace.size, generator=torch.Generator().manual_seed(i)) * 0.3 for i in range(4)]
    one_by_one = [bound.losses(PROMPTS[0], "London", [each])[0] for each in updates]
    with tokens_read(tiny, 0) as lower, tokens_read(tiny, 3) as upper:
        assert bound.losses(PROMPTS[0], "London", updates) == pytest.approx(one_by_one, abs=1e-4)
    assert 4 * sum(lower) == sum(upper)
    assert len({round(loss, 2) for loss in one_by_one}) == 4
