"""Updates that act on the answer: the base model alone reads the prompt, once for all whose prompts begin alike."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from regrad.inference import verification
from regrad.inference.answer_losses import answer_losses
from regrad.inference.engine import Engine
from regrad.inference.passes import SharedReading
from regrad.inference.rows import DecodingRequest, Row
from regrad.models.batching import pad_batch, sequence_losses
from regrad.models.config import SubspaceConfig
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace, Update, find_subspace
from tests.tools.decoded import PROMPTS, Heard, recomputed, run, update
from tests.unit.inference.test_sharing import EXAMPLES, prompt_tokens, tokens_read


def attention(lm: LanguageModel) -> Subspace:
    """In all blocks, so that an update in it reaches those below the model's own subspace."""
    return find_subspace(lm.model, SubspaceConfig(layers="all", projections=("q_proj", "v_proj"), rank=2))


def activated(lm: LanguageModel, seed: int, subspace: Subspace | None = None) -> tuple[Update, ...]:
    return update(lm, seed, 0.3, subspace, "answer")


def combinations(lm: LanguageModel) -> list[tuple[Update, ...]]:
    """None, one of each kind, in two subspaces, and two kinds at once."""
    other = attention(lm)
    everything, everywhere = update(lm, 1), update(lm, 2, subspace=other)
    alone, beside = activated(lm, 3), activated(lm, 4, other)
    return [(), everything, alone, beside, alone + beside, everywhere + alone, everything + beside]


def requests_of(lm: LanguageModel) -> list[DecodingRequest]:
    prompts = [*PROMPTS, EXAMPLES + PROMPTS[0]]
    return [
        DecodingRequest(prompt, updates, 3 + number % 5, stop=())
        for number, (prompt, updates) in enumerate(product(prompts, combinations(lm)))
    ]


def expected_of(lm: LanguageModel, requests: list[DecodingRequest]) -> list[str]:
    return [recomputed(lm, each.prompt, each.updates, each.max_new_tokens, each.raw) for each in requests]


def reading(engine: Engine, lm: LanguageModel, requests: list[DecodingRequest]) -> tuple[list[int], list[int]]:
    """What the lowest and the highest block read in each pass; every answer is the one expected."""
    expected = expected_of(lm, requests)
    with tokens_read(lm, 0) as lower, tokens_read(lm, 3) as upper:
        assert [item.text for item in run(engine, requests)] == expected
    return lower, upper


@pytest.mark.slow
def test_answers_are_those_of_reading_all_again_for_each_token(tiny64: LanguageModel) -> None:
    """Whole prompts and pieces, few rows and many, with drafts and without; rows of all kinds come, go and move."""
    requests = requests_of(tiny64)
    expected = expected_of(tiny64, requests)
    assert len(set(expected)) > 5 * len(PROMPTS)
    assert expected != expected_of(
        tiny64, [DecodingRequest(r.prompt, r.updates[:1], r.max_new_tokens) for r in requests]
    )
    rng = random.Random(3)
    for rows, piece, drafted, steps in [
        (1, 2048, 0, 1),
        (3, 16, 0, 60),
        (6, 7, 2, 60),
        (16, 2048, 0, 4),
        (42, 64, 3, 1),
    ]:
        engine = Engine(tiny64, max_rows=rows, prefill_tokens=piece, draft_tokens=drafted)
        heard = run(engine, requests, [rng.randrange(steps) for _ in requests])
        assert [item.text for item in heard] == expected


def test_a_prompt_of_one_token_is_read_under_its_update(tiny64: LanguageModel) -> None:
    requests = [DecodingRequest("", updates, 6, stop=(), raw=True) for updates in combinations(tiny64)]
    assert {len(Row(tiny64, each, Heard()).prompt) for each in requests} == {1}
    expected = expected_of(tiny64, requests)
    assert len(set(expected)) > 3
    assert expected[1] == expected_of(tiny64, [DecodingRequest("", activated(tiny64, 1), 6, raw=True)])[0]
    assert [item.text for item in run(Engine(tiny64), requests)] == expected


def test_drawn_answers_are_those_drawn_alone(tiny64: LanguageModel) -> None:
    requests = [
        DecodingRequest(prompt, activated(tiny64, i), 8, 0.8, 0.9, seed=i, stop=()) for i, prompt in enumerate(PROMPTS)
    ]
    alone = [run(Engine(tiny64, max_rows=1), [request])[0].text for request in requests]
    assert [item.text for item in run(Engine(tiny64, draft_tokens=2), requests, [0, 3, 1, 0, 2])] == alone


@pytest.mark.slow
def test_a_cancelled_row_changes_nobody(tiny64: LanguageModel) -> None:
    requests = [DecodingRequest(EXAMPLES, updates, 6, stop=()) for updates in combinations(tiny64)]
    expected = expected_of(tiny64, requests)
    for gone, at in product(range(len(requests)), (1, 2, 4)):
        engine, heard = Engine(tiny64, prefill_tokens=40), [Heard() for _ in requests]
        rows = [engine.submit(request, listener) for request, listener in zip(requests, heard, strict=True)]
        for _ in range(at):
            engine.step()
        rows[gone].cancelled = True
        while engine.step():
            pass
        assert [h.text for i, h in enumerate(heard) if i != gone] == [e for i, e in enumerate(expected) if i != gone]


def test_rows_of_a_pass_that_fails_go_on_one_by_one(tiny64: LanguageModel) -> None:
    requests = [DecodingRequest(EXAMPLES, updates, 5, stop=()) for updates in combinations(tiny64)]
    engine = Engine(tiny64, prefill_tokens=40)
    scores = engine._scores

    def fails_for_several(numbers: list[int], pieces: list[list[int]]) -> Any:
        if len(numbers) > 1:
            raise RuntimeError("too many")
        return scores(numbers, pieces)

    engine._scores = fails_for_several  # type: ignore[method-assign]
    assert [item.text for item in run(engine, requests)] == expected_of(tiny64, requests)


def test_one_prompt_is_read_once_by_the_whole_model_for_updates_that_act_on_the_answer(tiny64: LanguageModel) -> None:
    """Direct's last token, too, though the others read theirs with the first tokens that are written."""
    updates = [(), *(activated(tiny64, i) for i in range(3)), activated(tiny64, 3, attention(tiny64))]
    requests = [DecodingRequest(EXAMPLES, each, 5, stop=()) for each in updates]
    lower, upper = reading(Engine(tiny64), tiny64, requests)
    assert upper == lower
    assert upper[:2] == [prompt_tokens(tiny64, EXAMPLES), len(requests)]
    assert len(set(expected_of(tiny64, requests))) > 3


def test_prompts_of_two_kinds_are_read_once_each(tiny64: LanguageModel) -> None:
    """direct, regrad, rag and regrad+icl of one question, whose prompts share less than is worth a pass."""
    prompts = [PROMPTS[0], "Passage: " + EXAMPLES]
    requests = [DecodingRequest(p, u, 5, stop=()) for p in prompts for u in ((), activated(tiny64, 1))]
    _, upper = reading(Engine(tiny64), tiny64, requests)
    assert upper[0] == 2 * prompt_tokens(tiny64, prompts[1])


def test_what_prompts_begin_with_is_read_once_by_the_whole_model(tiny64: LanguageModel) -> None:
    requests = [
        DecodingRequest(EXAMPLES + prompt, activated(tiny64, i), 5, stop=()) for i, prompt in enumerate(PROMPTS)
    ]
    _, upper = reading(Engine(tiny64), tiny64, requests)
    assert 16 <= upper[0] <= prompt_tokens(tiny64, EXAMPLES)
    _, apart = reading(Engine(tiny64, share_prompts=False), tiny64, requests)
    assert apart[0] > 5 * upper[0]


def test_beside_an_update_in_force_only_the_lower_blocks_are_shared(tiny64: LanguageModel) -> None:
    updates = [activated(tiny64, 1), update(tiny64, 2), activated(tiny64, 3)]
    requests = [DecodingRequest(EXAMPLES, each, 5, stop=()) for each in updates]
    length = prompt_tokens(tiny64, EXAMPLES)
    lower, upper = reading(Engine(tiny64), tiny64, requests)
    assert (lower[0], upper[0]) == (length, 3 * length)


@pytest.mark.parametrize("piece", [46, 8])
def test_a_prompt_that_is_read_once_counts_once_within_the_limit(tiny64: LanguageModel, piece: int) -> None:
    """Rows that read alike go together also where each by itself would fill a pass."""
    requests = [DecodingRequest(EXAMPLES, activated(tiny64, i), 3, stop=()) for i in range(4)]
    requests.append(DecodingRequest("word " * 30, activated(tiny64, 9), 3, stop=()))
    _, upper = reading(Engine(tiny64, prefill_tokens=piece), tiny64, requests)
    assert max(upper) <= max(piece, len(requests))
    read = sum(prompt_tokens(tiny64, each) for each in {each.prompt for each in requests})
    assert read <= sum(upper) <= read + 3 * len(requests)


def test_how_many_rows_a_pass_takes(tiny: LanguageModel) -> None:
    def rows(*prompts: list[int], in_force: tuple[int, ...] = ()) -> list[Row]:
        found = []
        for number, prompt in enumerate(prompts):
            row = Row(tiny, DecodingRequest("a", activated(tiny, number)), Heard())
            row.prompt, row._prefilled = prompt, len(prompt)
            row.in_force = row.request.updates if number in in_force else ()
            found.append(row)
        return found

    whole, none = SharedReading(None, True), SharedReading(None, False)
    one, longer, other = [1] * 6, [1] * 9, [2] * 5
    assert whole.choose(rows(one, one, one, one), 8) == [0, 1, 2, 3]
    assert none.choose(rows(one, one, one, one), 12) == [0, 1]
    assert whole.choose(rows(one, longer, one, other), 9) == [0, 1, 2]
    assert whole.choose(rows(one, longer, one, other), 18) == [0, 1, 2, 3]
    assert whole.choose(rows(other, one, longer), 9) == [0]
    assert whole.choose(rows(one, one, one, in_force=(2,)), 12) == [0, 1]
    assert whole.choose(rows(one, one, one, in_force=(0,)), 12) == [0, 1]
    assert whole.choose(rows(longer), 3) == [0]
    found = whole.readers(rows(one, longer, other, one), [one, longer, other, one])
    assert found and (found.places, found.whole) == ([1, 1, 2, 1], True)
    assert whole.readers(rows(one, other), [one, other]) is None
    assert whole.readers(rows(one, one, in_force=(1,)), [one, one]) is None


def test_a_model_that_does_not_bear_it_reads_row_by_row(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = verification._shares
    monkeypatch.setattr(verification, "_shares", lambda lm, kernels, whole: not whole and shares(lm, kernels, whole))
    monkeypatch.setattr(verification, "_VERIFIED", {})
    requests = [DecodingRequest(EXAMPLES, activated(tiny, i), 4, stop=()) for i in range(2)]
    _, upper = reading(Engine(tiny), tiny, requests)
    assert upper[0] == 2 * (prompt_tokens(tiny, EXAMPLES) - 1)


def test_an_update_takes_no_memory_or_time_before_it_is_in_force(tiny: LanguageModel) -> None:
    engine, other = Engine(tiny, prefill_tokens=8), attention(tiny)
    row = engine.submit(DecodingRequest(EXAMPLES, activated(tiny, 1, other), 3, stop=()), Heard())
    seen = []
    while engine.step():
        seen.append((row.awaits_updates, other in engine._updates._kept))
    assert set(seen[:-4]) == {(True, False)} and (False, True) in seen
    assert other not in engine._updates._kept


def losses_by_mask(lm: LanguageModel, prompt: list[int], answer: list[int], updates_UP: Tensor) -> Tensor:
    found = []
    for update_P in updates_UP:
        batch = pad_batch([prompt + answer], [len(prompt)], lm.pad_id, lm.device)
        with torch.no_grad(), lm.lora.applied(update_P, batch.acted_on("answer")):
            found.append(sequence_losses(lm, batch, "sum"))
    return torch.cat(found)


@pytest.mark.parametrize("shared", [True, False])
def test_losses_under_several_updates_are_those_by_a_mask_and_the_prompt_is_read_once(
    tiny64: LanguageModel, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        monkeypatch.setattr(verification, "_shares", lambda lm, kernels, whole: False)
        monkeypatch.setattr(verification, "_VERIFIED", {})
    verification.verify_decoding(tiny64)
    updates = torch.stack([each.vector for i in range(4) for each in update(tiny64, i)])
    prompt, answer = tiny64.encode_prompt(EXAMPLES), tiny64.encode(" London and lived")
    with tokens_read(tiny64, 0) as lower, tokens_read(tiny64, 3) as upper:
        found = answer_losses(tiny64, prompt, answer, updates)
    torch.testing.assert_close(found, losses_by_mask(tiny64, prompt, answer, updates), rtol=1e-9, atol=1e-9)
    assert len({round(float(loss), 3) for loss in found}) == 4
    before, count = len(prompt) - 1, len(answer)
    if shared:
        assert (lower, upper) == ([before, count], [before, 4 * count])
    else:
        assert lower == upper == [4 * before, 4 * count]


def test_losses_of_a_prompt_of_one_token_and_of_an_empty_answer(tiny64: LanguageModel) -> None:
    updates = torch.stack([each.vector for i in range(2) for each in update(tiny64, i)])
    prompt, answer = tiny64.bos, tiny64.encode(" London")
    found = answer_losses(tiny64, prompt, answer, updates)
    torch.testing.assert_close(found, losses_by_mask(tiny64, prompt, answer, updates), rtol=1e-9, atol=1e-9)
    assert answer_losses(tiny64, prompt, [], updates).tolist() == [0.0, 0.0]
