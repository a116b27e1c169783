"""What a stream of tokens becomes: stop strings, white space, characters of several bytes; and drawing of tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest, Row, TextStream
from regrad.models.loading import LanguageModel
from tests.tools.decoded import PROMPTS, Heard, alone, run, update


def bytes_of(ids: Sequence[int]) -> str:
    """A tokenizer with a token for each byte."""
    return bytes(ids).decode("utf-8", errors="replace")


def streamed(text: str, stops: Sequence[str] = ()) -> tuple[list[str], str, bool]:
    """The pieces, the final text, and whether a stop string ended it."""
    stream = TextStream(bytes_of, stops)
    pieces = []
    for token in text.encode():
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return pieces, stream.text, stream.stopped


def reference(text: str, stops: Sequence[str]) -> str:
    """The text before the stop string that is the first to be complete."""
    text = text.lstrip()
    for end in range(len(text) + 1):
        starts = [at for stop in stops if (at := text[:end].find(stop)) >= 0]
        if starts:
            return text[: min(starts)].rstrip()
    return text.rstrip()


TEXTS = st.text(st.sampled_from("ab \nüß漢🙂"), max_size=30)


@given(TEXTS, st.lists(st.text(st.sampled_from("ab \n漢"), min_size=1, max_size=4), max_size=3))
def test_pieces_joined_are_the_text_cut_at_the_first_stop(text: str, stops: list[str]) -> None:
    pieces, final, stopped = streamed(text, stops)
    assert "".join(pieces) == final == reference(text, stops)
    assert stopped == any(stop in text.lstrip() for stop in stops)


@given(st.text(st.sampled_from("üß漢🙂é"), min_size=1, max_size=60))
def test_no_piece_breaks_a_character(text: str) -> None:
    pieces, final, _ = streamed(text)
    assert final == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert all(len(piece) <= 2 for piece in pieces)  # and nothing is held back for long


def test_an_answer_that_ends_within_a_character_says_so_once() -> None:
    stream = TextStream(bytes_of, ())
    pieces = [stream.add(token) for token in "ab漢".encode()[:-1]]
    assert "".join([*pieces, stream.finish()]) == stream.text == "ab\ufffd"


def test_a_stop_string_over_several_tokens_is_never_given_out() -> None:
    pieces, final, stopped = streamed("born in London END of", ["END"])
    assert (final, stopped) == ("born in London", True)
    assert not any("E" in piece for piece in pieces)
    assert streamed("born in London EN", ["END"])[1] == "born in London EN"


def test_the_first_of_several_stops_counts() -> None:
    assert streamed("one two three", ["three", "two"])[1] == "one"
    assert streamed("\n\n one\ntwo", ["\n"])[1] == "one"


def test_words_of_the_lab_model_stream_as_they_are_decoded(lab_model: LanguageModel) -> None:
    text = "Les Dripen was born in London, and  works as a baker . It's 1984 !"
    ids = lab_model.encode(text)
    stream = TextStream(lambda some: str(lab_model.tokenizer.decode(list(some))), ())
    pieces = [*map(stream.add, ids), stream.finish()]
    assert "".join(pieces) == lab_model.tokenizer.decode(ids).strip()
    assert sum(bool(piece) for piece in pieces) > 5


def test_stops_of_the_request_replace_the_models_own(tiny: LanguageModel) -> None:
    plain = DecodingRequest(PROMPTS[0], update(tiny, 0), 24, stop=())
    text = alone(tiny, plain)
    middle = text[len(text) // 2 :][:2]
    cut = DecodingRequest(PROMPTS[0], update(tiny, 0), 24, stop=(middle,))
    heard = run(Engine(tiny), [cut, plain])
    assert heard[0].text == text[: text.index(middle)].rstrip()
    assert heard[1].text == text
    assert [item.finished.reason for item in heard if item.finished] == ["stop", "length"]


def test_drawing_with_a_seed_is_repeatable_in_any_batch(tiny64: LanguageModel) -> None:
    drawn = [DecodingRequest(PROMPTS[0], update(tiny64, 1), 10, 1.0, 0.95, seed, ()) for seed in range(6)]
    expected = [alone(tiny64, request) for request in drawn]
    assert len(set(expected)) > 3
    others = [DecodingRequest(prompt, update(tiny64, 2), 12, 1.0) for prompt in PROMPTS]
    heard = run(Engine(tiny64), [*others, *drawn], [0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0])
    assert [item.text for item in heard[5:]] == expected


def test_without_a_seed_answers_differ(tiny: LanguageModel) -> None:
    request = DecodingRequest(PROMPTS[0], (), 16, 1.5, stop=())
    assert len({item.text for item in run(Engine(tiny), [request] * 6)}) > 1


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1e-9), (1.0, 1e-60), (1.0, 0.0), (1e-6, 1.0), (1e-45, 1.0), (1e-320, 1.0)]
)
def test_a_tiny_top_p_or_temperature_is_greedy(tiny: LanguageModel, temperature: float, top_p: float) -> None:
    greedy = DecodingRequest(PROMPTS[0], update(tiny, 3), 10)
    drawn = DecodingRequest(PROMPTS[0], update(tiny, 3), 10, temperature, top_p, seed=3)
    heard = run(Engine(tiny), [greedy, drawn])
    assert heard[1].text == heard[0].text


def row(lm: LanguageModel, **options: float) -> Row:
    return Row(lm, DecodingRequest("a", (), 5, seed=1, **options), Heard())  # type: ignore[arg-type]


def test_tokens_are_drawn_by_their_chances_within_the_nucleus(tiny: LanguageModel) -> None:
    chances = torch.tensor([0.15, 0.5, 0.05, 0.3])
    drawer = row(tiny, temperature=1.0, top_p=0.75)
    drawn = torch.tensor([drawer.choose(chances.log()) for _ in range(2000)]).bincount(minlength=4) / 2000
    torch.testing.assert_close(drawn, torch.tensor([0.0, 0.625, 0.0, 0.375]), atol=0.05, rtol=0)


def test_a_higher_temperature_draws_more_evenly(tiny: LanguageModel) -> None:
    scores = torch.tensor([0.0, 2.0, -1.0])
    shares = []
    for temperature in (0.3, 1.0, 4.0):
        drawer = row(tiny, temperature=temperature)
        shares.append(sum(drawer.choose(scores) == 1 for _ in range(500)) / 500)
    assert all(first > second + 0.05 for first, second in pairwise(shares))


def test_numbers_that_are_not_finite_are_not_drawn(tiny: LanguageModel) -> None:
    drawer, rng = row(tiny, temperature=0.5), random.Random(1)
    bad = [float("nan"), float("inf"), float("-inf")]
    for _ in range(50):
        scores = torch.tensor([rng.choice(bad), 1.0, rng.choice(bad), 0.5])
        assert drawer.choose(scores) in (1, 3)
    assert drawer.choose(torch.full((4,), float("nan"))) in range(4)
