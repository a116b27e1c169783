"""The order of draws: a function of sources, seed and step, whoever asks and wherever they begin."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrad.errors import TrainingError
from regrad.training.sampler import Draw, Sampler, SampleSource
from regrad.training.workers import Workers
from tests.tools.refusals import refused


def numbers(size: int, first: int, last: int, seed: str = "0") -> list[int]:
    return [draw.number for draw in Sampler([SampleSource(size, seed)], 1).draws(first, last)]


def test_workers_share_each_global_batch_whatever_their_number() -> None:
    batch = list(range(8))
    for count in (1, 2, 4):
        shares = [Workers(rank, count).share(batch) for rank in range(count)]
        assert sorted(number for share in shares for number in share) == batch
        assert {len(share) for share in shares} == {8 // count}
    with refused(TrainingError, "batch_not_divisible", batch_size=8, workers=3):
        Workers(count=3).check(8)


def test_every_epoch_sees_every_item_once_in_a_new_order_of_its_seed() -> None:
    draws = numbers(6, 0, 12)
    assert sorted(draws[:6]) == sorted(draws[6:]) == list(range(6))
    assert draws[:6] != draws[6:]
    assert numbers(6, 0, 12, "1") != draws
    expected = list(range(6))
    random.Random("0/1").shuffle(expected)
    assert draws[6:] == expected, "trained MetaInits and LoRAs rest on this order"


@given(
    st.lists(st.tuples(st.integers(1, 7), st.none() | st.floats(0.1, 9)), min_size=1, max_size=3),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_a_resumed_run_draws_what_the_whole_one_draws(sources: list[tuple[int, float | None]], a: int, b: int) -> None:
    sampler = Sampler([SampleSource(size, f"7/{i}", weight) for i, (size, weight) in enumerate(sources)], 2)
    whole = list(sampler.draws(0, a + b))
    assert list(sampler.draws(a, a + b)) == whole[a:]
    assert [draw.position for draw in whole] == list(range(a + b))


def test_each_worker_gets_its_share_of_every_step_from_any_step_on() -> None:
    sampler = Sampler([SampleSource(5, "3/0"), SampleSource(3, "3/1")], 4)
    whole: list[list[Draw]] = list(sampler.steps(0, 6))
    for rank in range(2):
        assert list(sampler.steps(2, 6, Workers(rank, 2))) == [step[rank::2] for step in whole[2:]]


@pytest.mark.parametrize(
    ("weights", "shares"), [((None, None), (30, 10)), ((1.0, 1.0), (20, 20)), ((3.0, 2.0), (24, 16))]
)
def test_sources_are_mixed_in_proportion_at_every_moment(
    weights: tuple[float | None, float | None], shares: tuple[int, int]
) -> None:
    sources = [SampleSource(30, "0/0", weights[0]), SampleSource(10, "0/1", weights[1])]
    drawn = [draw.source for draw in Sampler(sources, 1).draws(0, 40)]
    assert (drawn.count(0), drawn.count(1)) == shares
    for position in range(1, 41):
        assert abs(drawn[:position].count(0) - shares[0] / 40 * position) <= 1


def test_a_source_without_items_is_a_clear_error() -> None:
    with refused(TrainingError, "source_empty"):
        Sampler([SampleSource(3, "0"), SampleSource(0, "1")], 1)
