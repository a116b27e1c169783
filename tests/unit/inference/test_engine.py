"""Iteration-level batching: whoever else is in the batch, and whenever they come and go, each gets its own answer."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
import torch

from regrad.errors import ModelError, PromptTooLong
from regrad.inference.decoding import GenerationRequest
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.models.loading import LanguageModel
from tests.tools.decoded import PROMPTS, Heard, alone, run, update
from tests.tools.reference_decoding import reference_generate
from tests.tools.refusals import refused


def pool(lm: LanguageModel) -> list[DecodingRequest]:
    """Prompts and lengths of all kinds, with and without updates, some drawn with a seed."""
    updates = [(), *(update(lm, seed) for seed in range(3))]
    greedy = [
        DecodingRequest(prompt, each, 2 + (i * 5) % 7) for i, (prompt, each) in enumerate(product(PROMPTS, updates))
    ]
    drawn = [DecodingRequest(prompt, updates[1], 8, 0.8, 0.9, seed=i) for i, prompt in enumerate(PROMPTS)]
    return greedy + drawn


def test_greedy_answers_are_those_of_transformers_generate(tiny: LanguageModel) -> None:
    requests = [r for r in pool(tiny) if r.temperature == 0]
    expected = [
        reference_generate(tiny, [GenerationRequest(r.prompt, r.updates, r.max_new_tokens)])[0] for r in requests
    ]
    heard = run(Engine(tiny), requests)
    assert [item.text for item in heard] == [item.text for item in expected]
    assert [item.finished.prompt_tokens for item in heard if item.finished] == [e.prompt_tokens for e in expected]
    assert len({item.text for item in expected}) > len(PROMPTS)


def test_the_lab_model_answers_as_with_generate(lab_model: LanguageModel) -> None:
    prompts = lab_model.config.prompts
    texts = [prompts.prompt(f"Where was {name} born?") for name in ("Les Dripen", "Drax Gutror", "Ada")]
    requests = [DecodingRequest(text, u, 12) for text in texts for u in ((), update(lab_model, 1, 0.02))]
    expected = [reference_generate(lab_model, [GenerationRequest(r.prompt, r.updates, 12)])[0].text for r in requests]
    assert [item.text for item in run(Engine(lab_model), requests)] == expected


@pytest.mark.slow
def test_200_interleavings_give_each_what_it_gets_alone(tiny64: LanguageModel) -> None:
    """In float64, in which the order of sums cannot tip a choice between two tokens."""
    requests = pool(tiny64)
    expected = [alone(tiny64, request) for request in requests]
    rng = random.Random(7)
    largest = 0
    for _ in range(200):
        chosen = [rng.randrange(len(requests)) for _ in range(rng.randint(2, 6))]
        engine = Engine(tiny64, max_rows=rng.randint(1, 6), prefill_tokens=rng.choice([16, 64, 2048]))
        heard = run(engine, [requests[i] for i in chosen], [rng.randrange(12) for _ in chosen])
        assert [item.text for item in heard] == [expected[i] for i in chosen]
        largest = max(largest, *(item.finished.largest_batch for item in heard if item.finished))
    assert largest >= 5


@pytest.mark.slow
def test_one_engine_serves_a_long_stream_of_requests(tiny64: LanguageModel) -> None:
    """The same rows, keys and values are used again and again by others."""
    requests = pool(tiny64)
    expected = [alone(tiny64, request) for request in requests]
    rng = random.Random(8)
    chosen = [rng.randrange(len(requests)) for _ in range(150)]
    heard = run(Engine(tiny64, max_rows=5), [requests[i] for i in chosen], [rng.randrange(200) for _ in chosen])
    assert [item.text for item in heard] == [expected[i] for i in chosen]


@pytest.mark.parametrize("piece", [1, 7, 50])
def test_a_long_prompt_is_read_in_pieces_while_others_go_on(tiny64: LanguageModel, piece: int) -> None:
    long = DecodingRequest("word " * 60 + PROMPTS[0], update(tiny64, 4), 6)
    short = DecodingRequest(PROMPTS[1], update(tiny64, 5), 12)
    expected = [alone(tiny64, long), alone(tiny64, short)]
    engine = Engine(tiny64, prefill_tokens=piece)
    passes: list[int] = []
    _watch_passes(engine, passes)
    assert [item.text for item in run(engine, [long, short], [2, 0])] == expected
    assert max(passes) <= max(piece, 2)


def _watch_passes(engine: Engine, sizes: list[int]) -> None:
    scores = engine._scores

    def watched(numbers: list[int], pieces: list[list[int]]) -> Any:
        sizes.append(max(map(len, pieces)) * len(pieces))
        return scores(numbers, pieces)

    engine._scores = watched  # type: ignore[method-assign]


def test_what_does_not_fit_beside_the_others_waits(tiny: LanguageModel) -> None:
    request = DecodingRequest(PROMPTS[0], (), 10)
    tokens = len(tiny.bos + tiny.encode(request.prompt)) + 10
    engine = Engine(tiny, max_cached_tokens=2 * tokens)
    heard = [Heard() for _ in range(5)]
    for listener in heard:
        engine.submit(request, listener)
    seen = set()
    while engine.step():
        seen.add(engine.active)
        assert engine.active <= 2
    assert 2 in seen
    assert len({item.text for item in heard}) == 1


def test_one_that_is_too_large_for_the_limit_is_taken_alone(tiny: LanguageModel) -> None:
    request = DecodingRequest(PROMPTS[2], update(tiny, 1), 6)
    heard = run(Engine(tiny, max_cached_tokens=8), [request, request])
    assert [item.text for item in heard] == [alone(tiny, request)] * 2
    assert all(item.finished and item.finished.largest_batch == 1 for item in heard)


def test_keys_and_values_take_no_more_than_the_limit(tiny: LanguageModel) -> None:
    engine = Engine(tiny, max_rows=32, max_cached_tokens=400)
    requests = [DecodingRequest(PROMPTS[i % 5], update(tiny, i), 7) for i in range(12)]
    most = 0
    heard = [Heard() for _ in requests]
    for request, listener in zip(requests, heard, strict=True):
        engine.submit(request, listener)
    while engine.step():
        most = max(most, engine._cache.rows * engine._cache.tokens)
    assert most <= 400


def test_a_cancelled_request_frees_its_row_and_changes_nobody(tiny64: LanguageModel) -> None:
    requests = [DecodingRequest(prompt, update(tiny64, i), 12) for i, prompt in enumerate(PROMPTS)]
    expected = [alone(tiny64, request) for request in requests]
    for gone, at in product(range(5), (0, 1, 4)):
        engine, heard = Engine(tiny64, max_rows=4), [Heard() for _ in requests]
        rows = [engine.submit(request, listener) for request, listener in zip(requests, heard, strict=True)]
        for _ in range(at):
            engine.step()
        rows[gone].cancelled = True
        before = list(heard[gone].pieces)
        while engine.step():
            pass
        assert not heard[gone].is_over and heard[gone].pieces == before
        assert [h.text for i, h in enumerate(heard) if i != gone] == [e for i, e in enumerate(expected) if i != gone]
        assert (engine.active, engine.waiting) == (0, 0)


def test_too_long_a_prompt_is_refused_with_the_counts(tiny: LanguageModel) -> None:
    engine = Engine(tiny)
    with refused(PromptTooLong, max_new_tokens=20, context=256):
        engine.submit(DecodingRequest("word " * 300), Heard())
    assert engine.waiting == 0


def test_an_update_of_another_size_is_refused(tiny: LanguageModel) -> None:
    with refused(ModelError, "vector_size", found=[3]):
        tiny.subspace.updates(torch.zeros(3))


@pytest.mark.slow
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_an_update_that_is_not_finite_harms_only_its_own_request(tiny64: LanguageModel, bad: float) -> None:
    """Neither those beside it nor the one that later gets its row, shorter than others are then."""
    wrong = tiny64.subspace.updates(torch.full((tiny64.subspace.size,), bad))
    long = DecodingRequest(PROMPTS[2], update(tiny64, 0), 60, stop=())
    spoilt = [DecodingRequest(PROMPTS[2], wrong, 4), DecodingRequest(PROMPTS[2], wrong, 4, temperature=0.7)]
    short = DecodingRequest("a", update(tiny64, 1), 6)
    heard = run(Engine(tiny64, max_rows=3), [long, *spoilt, short, short], [0, 0, 0, 10, 10])
    assert [heard[i].text for i in (0, 3, 4)] == [alone(tiny64, request) for request in (long, short, short)]
    assert all(heard[i].finished for i in (1, 2))


def test_the_weights_are_never_written(tiny: LanguageModel) -> None:
    before = tiny.identity()
    run(Engine(tiny), pool(tiny))
    assert tiny.identity() == before


def test_a_failed_pass_ends_its_requests_and_the_engine_goes_on(tiny: LanguageModel) -> None:
    engine = Engine(tiny, max_rows=2)
    request = DecodingRequest(PROMPTS[0], (), 5)
    heard = [Heard() for _ in range(3)]
    for listener in heard:
        engine.submit(request, listener)
    engine.step()
    engine.fail(RuntimeError("the pass failed"))
    assert [str(item.error) for item in heard] == ["the pass failed", "the pass failed", "None"]
    while engine.step():
        pass
    assert heard[2].text == alone(tiny, request)


@pytest.mark.parametrize("place", ["pass", "text", "end"])
def test_a_request_that_cannot_be_decoded_ends_alone(
    tiny64: LanguageModel, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Its own passes fail, or its tokens have no text, as those beyond a tokenizer's vocabulary: others go on."""
    good = [DecodingRequest(PROMPTS[2], update(tiny64, 0), 12), DecodingRequest("a", (), 12, 0.8, seed=3)]
    bad = DecodingRequest(PROMPTS[1], update(tiny64, 2), 12, stop=("never",))
    expected = [alone(tiny64, request) for request in good]
    engine = Engine(tiny64)
    scores = engine._scores

    def failing(numbers: list[int], pieces: list[list[int]]) -> Any:
        found = scores(numbers, pieces)  # the keys and values of the others have been written when it fails
        if place == "pass" and any(engine._rows[i].request is bad and engine._rows[i].written for i in numbers):
            raise RuntimeError("this one cannot be run")
        return found

    def no_text(*_: object) -> str:
        raise IndexError("piece id is out of range")

    original = engine.submit

    def submit(request: DecodingRequest, listener: Any) -> Any:
        row = original(request, listener)
        if request is bad and place != "pass":
            monkeypatch.setattr(row.stream, "add" if place == "text" else "finish", no_text)
        return row

    monkeypatch.setattr(engine, "_scores", failing)
    monkeypatch.setattr(engine, "submit", submit)
    heard = run(engine, [good[0], bad, good[1], good[0]], [0, 0, 0, 3])
    assert [heard[i].text for i in (0, 2, 3)] == [*expected, expected[0]]
    assert isinstance(heard[1].error, RuntimeError if place == "pass" else IndexError)
    assert engine.active == 0
