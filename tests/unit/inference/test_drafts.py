"""Drafted tokens: where they come from, and that answers are those without them, under updates and beside others."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest, Drafts, Row
from regrad.models.loading import LanguageModel
from tests.tools.decoded import PROMPTS, Heard, alone, run, update


def test_a_draft_is_what_followed_the_longest_run_the_last_time() -> None:
    drafts = Drafts([[1, 2, 3, 4, 5], [9, 2, 3, 6, 7, 3, 8, 1, 2, 3]])
    assert drafts.next(2) == [4, 5]  # after 1 2 3, though 2 3 and 3 were elsewhere later
    drafts.add(6)
    assert drafts.next(9) == [7, 3, 8, 1, 2, 3, 6]
    drafts.add(100)
    assert drafts.next(9) == []


def test_a_draft_ends_with_its_text() -> None:
    assert Drafts([[5, 6], [7, 8, 5]]).next(4) == [6]
    assert Drafts([[6, 5], [7, 8, 5]]).next(4) == []


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=3), st.integers(1, 5))
def test_a_draft_is_always_in_one_of_the_texts_after_the_last_token(texts: list[list[int]], most: int) -> None:
    draft = Drafts(texts).next(most)
    assert len(draft) <= most
    if draft:
        found = [texts[-1][-1], *draft]
        assert any(text[i : i + len(found)] == found for text in texts for i in range(len(text)))


def repeating(lm: LanguageModel) -> list[DecodingRequest]:
    """Prompts with passages in them, greedy ones and drawn ones, some with an update."""
    return [
        DecodingRequest(prompt * 2, each, 16, temperature, 0.9, seed=3, stop=())
        for prompt in PROMPTS
        for each in ((), update(lm, 1, 0.1))
        for temperature in (0.0, 0.5)
        if len(prompt) < 50
    ]


@pytest.mark.slow
@pytest.mark.parametrize("most", [2, 15])
def test_answers_with_drafts_are_those_without(tiny64: LanguageModel, most: int) -> None:
    """In float64, in which the number of tokens of a pass cannot tip a choice; beside others that come and go."""
    requests = repeating(tiny64)
    expected = [alone(tiny64, request) for request in requests]
    rng = random.Random(most)
    for rows in (1, 3):
        engine = Engine(tiny64, max_rows=rows, draft_tokens=most)
        heard = run(engine, requests, [rng.randrange(12) for _ in requests])
        assert [item.text for item in heard] == expected


class Told:
    """A model that answers with given tokens, whatever it reads."""

    def __init__(self, lm: LanguageModel, engine: Engine, answer: list[int]) -> None:
        self._lm, self._engine, self._answer = lm, engine, answer
        engine._scores = self  # type: ignore[method-assign,assignment]

    def __call__(self, numbers: list[int], pieces: list[list[int]]) -> Tensor:
        row = self._engine._rows[numbers[0]]
        count = 1 if row.is_prefilling else len(pieces[0])
        wanted = self._answer[len(row.written) : len(row.written) + count]
        return torch.nn.functional.one_hot(torch.tensor(wanted), self._lm.vocabulary_size).float()


def answered(lm: LanguageModel, text: str, sources: tuple[str, ...], draft_tokens: int) -> tuple[Row, str]:
    engine, heard = Engine(lm, draft_tokens=draft_tokens), Heard()
    Told(lm, engine, lm.encode(text))
    count = len(lm.encode(text))
    row = engine.submit(DecodingRequest("Who?", (), count, stop=(), sources=sources), heard)
    while engine.step():
        pass
    return row, heard.text


def test_an_answer_that_a_passage_has_takes_few_passes(tiny: LanguageModel) -> None:
    """Also one that is not in the prompt; a draft that goes wrong costs no token."""
    text = "Ada was born in London and lived there"
    tokens = len(tiny.encode(text))
    for sources, draft_tokens, most in (((text,), 8, 5), (("nothing",), 8, tokens), ((text,), 0, tokens)):
        row, found = answered(tiny, text, sources, draft_tokens)
        assert found == text and len(row.written) == tokens
        assert row.passes <= most < tokens + 1
        assert (draft_tokens and sources == (text,)) or row.passes == tokens


def test_many_rows_are_decoded_without_drafts(tiny: LanguageModel) -> None:
    engine = Engine(tiny, draft_tokens=8)
    rows = [engine.submit(DecodingRequest("word word word", (), 4, stop=()), Heard()) for _ in range(9)]
    while engine.step():
        pass
    assert all(row.passes == len(row.written) for row in rows)
