"""What prompts begin with is kept between requests that come one after the other, and each gets its own answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regrad.inference.engine import Engine
from regrad.inference.passes import RowCache
from regrad.inference.rows import DecodingRequest
from regrad.models.config import SubspaceConfig
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace, Update, find_subspace
from regrad.models.virtual_tokens import virtual_tokens
from tests.tools.decoded import PROMPTS, Heard, alone, run, update
from tests.unit.inference.test_sharing import EXAMPLES, prompt_tokens, tokens_read
from tests.unit.inference.test_soft_prompts import behind
from tests.unit.models.test_virtual_tokens import drawn

HEAD = EXAMPLES * 2
"""In tokens more than the fewest that are kept, and less than what the tiny model reads."""
MOST = 1 << 24


def requests_of(updates: Sequence[tuple[Update, ...]]) -> list[DecodingRequest]:
    """Questions behind the same solved ones; the updates in turn."""
    return [DecodingRequest(HEAD + prompt, updates[i % len(updates)], 5, stop=()) for i, prompt in enumerate(PROMPTS)]


def everywhere(lm: LanguageModel) -> Subspace:
    return find_subspace(lm.model, SubspaceConfig(layers="all", projections=("q_proj", "v_proj"), rank=2))


def in_turn(engine: Engine, requests: Sequence[DecodingRequest]) -> list[Heard]:
    """One after the other: each comes when the one before it is done."""
    return [run(engine, [request])[0] for request in requests]


def given(heard: Sequence[Heard]) -> list[int]:
    return [item.finished.given_tokens for item in heard if item.finished]


def kinds(lm: LanguageModel, kind: str) -> list[tuple[Update, ...]]:
    """No update; one for each request, which acts on everything or on the answer; one for all, in every block."""
    return {
        "none": [()],
        "updates": [update(lm, i) for i in range(len(PROMPTS))],
        "activated": [update(lm, i, acts_on="answer") for i in range(len(PROMPTS))],
        "static": [update(lm, 1, subspace=everywhere(lm))],
    }[kind]


@pytest.mark.parametrize("kind", ["none", "updates", "activated", "static"])
def test_from_the_third_request_on_a_common_beginning_is_not_read_again(tiny64: LanguageModel, kind: str) -> None:
    requests = requests_of(kinds(tiny64, kind))
    expected = [alone(tiny64, request) for request in requests]
    assert len(set(expected)) > 2
    engine = Engine(tiny64, prefix_bytes=MOST)
    with tokens_read(tiny64, 0) as lower, tokens_read(tiny64, 3) as upper:
        heard = in_turn(engine, requests)
    assert [item.text for item in heard] == expected
    first, second, *others = given(heard)
    assert (first, second) == (0, 0)
    assert min(others) >= prompt_tokens(tiny64, HEAD) - 1 > 32, "the last token of the head may join the question's"
    unread = sum(others)
    written = sum(item.finished.completion_tokens - 1 for item in heard if item.finished)
    read = sum(prompt_tokens(tiny64, request.prompt) for request in requests) + written
    assert sum(lower) == read - unread
    assert sum(upper) == (read if kind == "updates" else read - unread), "updates change what upper blocks read"


def logits(lm: LanguageModel, engine: Engine, request: DecodingRequest) -> Tensor:
    """Those of which the first token is chosen."""
    found: list[Tensor] = []
    scores = engine._scores

    def noting(numbers: list[int], pieces: list[list[int]]) -> Tensor:
        found.append(scores(numbers, pieces))
        return found[-1]

    engine._scores = noting  # type: ignore[method-assign]
    row = engine.submit(request, Heard())
    while not row.written:
        engine.step()
    engine._scores = scores  # type: ignore[method-assign]
    row.cancelled = True
    engine.step()
    return found[-1][-1]


@pytest.mark.parametrize("kind", ["none", "updates", "activated", "static"])
def test_what_is_given_is_to_the_bit_what_is_read_in_the_same_pieces(tiny: LanguageModel, kind: str) -> None:
    """Without the cache a prompt is one piece, whose sums are in another order: the same but for the last bits."""
    requests = requests_of(kinds(tiny, kind))
    engine, without = Engine(tiny, prefix_bytes=MOST), Engine(tiny)
    logits(tiny, engine, requests[0])
    read_V, given_V = (logits(tiny, engine, requests[1]) for _ in range(2))
    assert engine.prefix_bytes > 0
    assert torch.equal(read_V, given_V)
    whole_V = logits(tiny, without, requests[1])
    torch.testing.assert_close(given_V, whole_V, rtol=1e-4, atol=1e-4)


def test_a_beginning_that_a_base_row_has_read_serves_rows_with_updates(tiny64: LanguageModel) -> None:
    requests = requests_of([(), (), *(update(tiny64, i) for i in range(3))])
    expected = [alone(tiny64, request) for request in requests]
    heard = in_turn(Engine(tiny64, prefix_bytes=MOST), requests)
    assert [item.text for item in heard] == expected
    assert [bool(length) for length in given(heard)] == [False, False, True, True, True]


def test_an_update_that_reaches_the_lower_blocks_is_given_nothing_of_others(tiny64: LanguageModel) -> None:
    subspace = everywhere(tiny64)
    requests = requests_of([update(tiny64, i, subspace=subspace) for i in range(len(PROMPTS))])
    requests = [replace(requests[0], updates=()), *requests, replace(requests[1], updates=())]
    expected = [alone(tiny64, request) for request in requests]
    engine = Engine(tiny64, prefix_bytes=MOST)
    heard = in_turn(engine, requests)
    assert [item.text for item in heard] == expected
    assert given(heard) == [0] * len(requests)


@pytest.mark.parametrize("updated", [False, True])
def test_soft_prompts_are_told_apart_by_their_values(tiny64: LanguageModel, updated: bool) -> None:
    one, other = drawn(tiny64, 40), drawn(tiny64, 40, 1)
    requests = [
        behind(tiny64, values, prompt, updates=update(tiny64, i) if updated else ())
        for i, (values, prompt) in enumerate(zip((one, other, one, other, one), PROMPTS, strict=True))
    ]
    expected = [alone(tiny64, request) for request in requests]
    engine = Engine(tiny64, prefix_bytes=MOST)
    heard = in_turn(engine, requests)
    assert [item.text for item in heard] == expected
    assert given(heard)[:4] == [0] * 4 and given(heard)[4] >= 40
    assert virtual_tokens(tiny64).put(one) == requests[0].ids[:40]
    with virtual_tokens(tiny64).replaced(requests[0].ids[:40], other):
        assert in_turn(engine, [requests[0]])[0].text == alone(tiny64, requests[0])
    assert given(in_turn(engine, [requests[0]])) == [0], "ids that stand for something else are not the same tokens"


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "piece", "drafted"), [(1, 2048, 0), (3, 16, 0), (6, 50, 2), (16, 64, 0)])
def test_in_any_batch_each_gets_what_it_gets_alone(tiny64: LanguageModel, rows: int, piece: int, drafted: int) -> None:
    """Rows of all kinds come, go and move, in pieces, beside prompts that begin otherwise, with too little memory."""
    every = [each for kind in ("none", "updates", "activated", "static") for each in kinds(tiny64, kind)]
    rng = random.Random(rows)
    heads = [HEAD, HEAD + EXAMPLES, PROMPTS[2] + HEAD, ""]
    requests = [
        DecodingRequest(rng.choice(heads) + rng.choice(PROMPTS), rng.choice(every), rng.randint(1, 6), stop=())
        for _ in range(60)
    ]
    expected = [alone(tiny64, request) for request in requests]
    engine = Engine(tiny64, rows, 4096, piece, draft_tokens=drafted, prefix_bytes=MOST // 64)
    heard = run(engine, requests, sorted(rng.randrange(300) for _ in requests))
    assert [item.text for item in heard] == expected
    assert sum(given(heard)) > 500
    assert engine.prefix_bytes <= MOST // 64


def test_the_one_that_was_not_used_for_longest_goes(tiny64: LanguageModel) -> None:
    def ask(engine: Engine, head: str) -> int:
        return given(in_turn(engine, [DecodingRequest(head + rng.choice(PROMPTS), (), 2)]))[0]

    rng = random.Random(0)
    engine = Engine(tiny64, prefix_bytes=MOST)
    heads = [f"{letter * 3}. {HEAD}" for letter in "abc"]
    for _ in range(2):
        ask(engine, heads[0])
    one = engine.prefix_bytes
    engine = Engine(tiny64, prefix_bytes=int(2.5 * one))
    for head in (heads[0], heads[0], heads[1], heads[1]):
        assert ask(engine, head) == 0
    assert ask(engine, heads[0]) > 32
    assert [ask(engine, heads[2]) for _ in range(2)] == [0, 0]
    assert 1.5 * one < engine.prefix_bytes <= 2.5 * one
    assert ask(engine, heads[0]) > 32 and ask(engine, heads[2]) > 32
    assert ask(engine, heads[1]) == 0, "it went"
    small = Engine(tiny64, prefix_bytes=one // 2)
    assert [ask(small, heads[0]) for _ in range(3)] == [0] * 3 and small.prefix_bytes == 0


def test_rows_and_what_is_kept_take_no_more_than_the_limit(tiny: LanguageModel) -> None:
    requests = requests_of([()])
    longest = max(prompt_tokens(tiny, request.prompt) for request in requests) + 5
    engine = Engine(tiny, max_cached_tokens=3 * longest, prefix_bytes=MOST)

    def taken() -> int:
        return engine._cache.rows * engine._cache.tokens + engine._prefixes.tokens

    in_turn(engine, requests[:3])
    assert engine.prefix_bytes > 0
    heard = [Heard() for _ in range(9)]
    for number, listener in enumerate(heard):
        engine.submit(requests[number % 5], listener)
    most = 0
    while engine.step():
        assert taken() <= 3 * longest
        most = max(most, engine.active)
    assert most == 3, "what is kept gives way"
    assert [item.text for item in heard] == [alone(tiny, requests[number % 5]) for number in range(9)]


def test_what_is_kept_holds_no_memory_of_rows(tiny: LanguageModel) -> None:
    engine = Engine(tiny, prefix_bytes=MOST)
    run(engine, [DecodingRequest(HEAD + prompt, update(tiny, i), 9) for i, prompt in enumerate(PROMPTS)])
    in_turn(engine, requests_of([()]))
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for prefix in engine._prefixes._kept
        for tensor in [*(each for pair in prefix.pairs for each in pair or ()), prefix.entered]
        if tensor is not None
    }
    assert sum(held.values()) == engine.prefix_bytes > 0
    engine.close()
    assert engine.prefix_bytes == 0


@torch.no_grad()
def test_a_model_that_changes_reads_everything_again(tiny64: LanguageModel) -> None:
    requests = requests_of([()])
    engine = Engine(tiny64, prefix_bytes=MOST)
    assert given(in_turn(engine, requests[:3]))[2] > 0
    weight = next(tiny64.model.parameters())
    before = weight.clone()
    try:
        weight.mul_(1.5)
        heard = in_turn(engine, requests[3:])
        assert given(heard) == [0, 0]
        assert [item.text for item in heard] == [alone(tiny64, request) for request in requests[3:]]
    finally:
        weight.copy_(before)


def test_prompts_that_begin_otherwise_and_an_engine_without_keep_nothing(tiny: LanguageModel) -> None:
    apart = [DecodingRequest(f"{i} {HEAD}", (), 2) for i in range(4)]
    engine = Engine(tiny, prefix_bytes=MOST)
    assert given(in_turn(engine, apart)) == [0] * 4 and engine.prefix_bytes == 0
    for off in (Engine(tiny), Engine(tiny, prefix_bytes=MOST, share_prompts=False)):
        assert given(in_turn(off, requests_of([()]))) == [0] * len(PROMPTS) and off.prefix_bytes == 0


def test_a_pass_that_fails_is_repeated_and_what_is_kept_is_whole(tiny64: LanguageModel) -> None:
    requests = requests_of([update(tiny64, i) for i in range(len(PROMPTS))])
    expected = [alone(tiny64, request) for request in requests]
    engine, failed = Engine(tiny64, prefix_bytes=MOST), []
    scores = engine._scores

    def failing(numbers: list[int], pieces: list[list[int]]) -> Tensor:
        found = scores(numbers, pieces)
        if len(numbers) > 1:
            failed.append(numbers)
            raise RuntimeError("together they cannot be run")
        return found

    engine._scores = failing  # type: ignore[method-assign]
    heard = [*run(engine, requests[:3]), *run(engine, requests[3:])]
    assert failed and [item.text for item in heard] == expected
    assert min(given(heard)[3:]) > 32


@pytest.mark.parametrize("kind", ["none", "updates"])
@pytest.mark.parametrize("copying", ["copied", "put"])
def test_without_memory_for_a_copy_nothing_is_kept_and_every_request_is_answered(
    tiny64: LanguageModel, monkeypatch: pytest.MonkeyPatch, kind: str, copying: str
) -> None:
    requests = requests_of(kinds(tiny64, kind))
    expected = [alone(tiny64, request) for request in requests]
    engine = Engine(tiny64, prefix_bytes=MOST)
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise torch.OutOfMemoryError("no memory")

        patch.setattr(RowCache, copying, full)
        heard = in_turn(engine, requests)
    assert [item.text for item in heard] == expected
    assert max(given(heard)) == 0
    again = in_turn(engine, requests)
    assert [item.text for item in again] == expected and max(given(again)) > 0, "memory is there again"


def test_room_is_made_before_a_prefix_is_copied_and_what_was_read_is_let_go(
    tiny64: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = kinds(tiny64, "updates")
    first = requests_of(updates)
    second = [replace(one, prompt=f"{PROMPTS[0]} {one.prompt}") for one in first]  # they begin otherwise
    engine = Engine(tiny64, prefix_bytes=MOST)
    in_turn(engine, first[:3])
    one = engine.prefix_bytes
    engine, copied, most = Engine(tiny64, prefix_bytes=one + one // 2), RowCache.copied, []

    def noting(*arguments: Any) -> Any:
        most.append(engine.prefix_bytes)
        return copied(*arguments)

    monkeypatch.setattr(RowCache, "copied", noting)
    in_turn(engine, [*first[:3], *second[:3]])
    assert most == [0, 0], "the first prefix is gone before the second is copied"
    row = engine.submit(second[3], Heard())
    while not row.written:
        engine.step()
    assert row.given > 0 and row.beginning is not None and row.beginning.given is None
