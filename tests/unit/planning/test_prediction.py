"""Speed as it is predicted, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from regrad.planning.prediction import Predictor
from regrad.planning.profile import Candidate, Curve, Machine, Observed, Profile, StagePoint, interpolated
from tests.unit.planning.examples import EMBEDDED_OWN, MACHINE, OWN, constant, observed, profile_of, with_embedded


def test_a_curve_is_straight_between_points_and_goes_on_with_its_last_slope() -> None:
    points = [(1.0, 10.0), (4.0, 16.0), (8.0, 32.0)]
    assert interpolated(points, 0.5) == 10.0
    assert interpolated(points, 2.0) == 12.0
    assert interpolated(points, 10.0) == 40.0
    assert interpolated([(1.0, 10.0), (2.0, 8.0)], 3.0) == 8.0  # a larger batch never takes less


def test_an_observed_load_is_predicted_as_it_was_observed() -> None:
    predictor = Predictor(profile_of())
    for one in profile_of().observed:
        found = predictor.predict(OWN, MACHINE, one.users)
        assert found.rate == pytest.approx(one.rate, rel=1e-9)
        assert found.p50 == pytest.approx(one.p50, rel=1e-9)


def test_each_server_is_predicted_from_its_own_loads() -> None:
    profile = with_embedded(profile_of(step=0.001), 0.7)
    predictor = Predictor(profile)
    for embedded, server in profile.servers.items():
        for one in server.observed:
            found = predictor.predict(server.configuration, MACHINE, one.users)
            assert server.configuration.embedded is embedded
            assert found.rate == pytest.approx(one.rate, rel=1e-9)
            assert found.p50 == pytest.approx(one.p50, rel=1e-9)
            assert found.demand == pytest.approx(sum(one.processor.values()))


def test_what_was_not_observed_is_not_known() -> None:
    old = Predictor(profile_of())
    assert (old.knows(False), old.knows(True)) == (True, False)
    both = Predictor(with_embedded(profile_of(), 1.0))
    assert both.knows(False)
    assert both.knows(True)


def test_an_embedded_gateway_loads_atoms_itself() -> None:
    predictor = Predictor(with_embedded(profile_of(), 0.5))
    whole, empty = (
        predictor.predict(EMBEDDED_OWN.model_copy(update={"cache_bytes": cached}), MACHINE, 16).demand
        for cached in (OWN.cache_bytes, 0)
    )
    assert whole == pytest.approx(0.5 * 0.020)
    assert empty - whole == pytest.approx(0.004)  # disk takes 5 ms, memory 1 ms


def test_an_embedded_gateway_searches_beside_its_event_loop_by_the_hand_calculated_example() -> None:
    """Of 12.8 ms for an answer of many users a quarter is the gateway's, and 4 ms are the retriever's and the loader's.

    Searching takes 1 ms of these 7.2, so the event loop has 6.2 left, and one core does that 161 times a second. Where
    the gateway has only its quarter, one core does 3.2 ms 312 times.
    """
    predictor = Predictor(with_embedded(profile_of(), 1.0))
    many = Machine(cores=64, memory_bytes=1 << 34)
    embedded = predictor.predict(EMBEDDED_OWN, many, 512)
    assert embedded.bottleneck == "gateway"
    assert embedded.rate == pytest.approx(1 / 0.0062)
    alone = predictor.predict(OWN, many, 512)
    assert alone.rate == pytest.approx(1 / 0.0032)
    two = EMBEDDED_OWN.model_copy(update={"gateway": 2, "retriever": 2, "bank_loader": 2})
    assert predictor.predict(two, many, 512).rate == pytest.approx(2 / 0.0062)


@pytest.mark.parametrize("at_once", [1, 2])
def test_between_two_loads_it_is_between_by_the_hand_calculated_example(at_once: int) -> None:
    """8 users are half-way between 4 and 16 in the logarithm.

    There an answer was observed to take 32 and 20 ms of the processor: 4 ms in retriever and loader, whatever the
    batch, 8 and 5 ms in the gateway and 20 and 11 ms elsewhere. So it is 4 + sqrt(8 x 5) + sqrt(20 x 11) = 25.2 ms
    here, however many micro-batches gather. 2 and 8 users a core kept 1.28 / 2 = 64% and 1.6 / 2 = 80% of the cores
    busy (40 answers of 32 ms, 80 of 20 ms), so 4 do 72%: 2 x 0.72 / 0.02516 = 57.2 answers a second, and by
    Little's law 8 / 57.2 = 140 ms.
    """
    found = Predictor(profile_of()).predict(OWN.model_copy(update={"at_once": at_once}), MACHINE, 8)
    assert found.demand == pytest.approx(0.02516, abs=1e-5)
    assert found.rate == pytest.approx(57.24, abs=0.01)
    assert found.p50 == pytest.approx(0.1398, abs=1e-4)
    assert found.bottleneck == "cores"


@pytest.mark.parametrize(
    "measured",
    [
        {1: (29, 36), 4: (48, 29), 16: (106, 16), 64: (172, 7.8)},
        {1: (14, 97), 4: (21, 85), 16: (46, 39), 64: (82, 22)},
        {1: (19, 71), 4: (32, 54), 16: (55, 31), 64: (95, 19)},
    ],
    ids=["2026-11-21", "2026-11-29", "2026-11-29 embedded"],
)
def test_a_load_between_two_that_were_measured_is_not_far_from_what_it_was(
    measured: dict[int, tuple[float, float]],
) -> None:
    """By users answers a second and milliseconds of the processor for one, from docs/benchmarks.md ("Through HTTP,
    under load"). At 16 users with those at 4 and 64 known, which are twice as far apart as in a profile. Straight
    between the two loads an answer takes 15, 37 and 18% too long."""
    known = tuple(
        Observed(users=users, answers=100, rate=rate, p50=users / rate, rows=1, processor={"rest": spent / 1e3})
        for users, (rate, spent) in measured.items()
        if users != 16
    )
    profile = profile_of().model_copy(update={"observed": known})
    bare = profile.model_copy(update={"stages": profile.stages.model_copy(update={"retrieve": None, "load": {}})})
    found = Predictor(bare).predict(OWN, MACHINE, 16)
    rate, spent = measured[16]
    assert 1e3 * found.demand == pytest.approx(spent, rel=0.12)
    assert found.rate == pytest.approx(rate, rel=0.15)


def test_twice_the_cores_are_twice_as_fast_for_twice_the_users_until_a_deployment_has_no_more_threads() -> None:
    predictor = Predictor(profile_of())
    wide = OWN.model_copy(update={"gateway": 2})
    larger = predictor.predict(wide, Machine(cores=4, memory_bytes=1 << 34), 32)
    assert larger.rate == pytest.approx(2 * predictor.predict(OWN, MACHINE, 16).rate)
    huge = predictor.predict(OWN, Machine(cores=64, memory_bytes=1 << 34), 512)
    assert huge.bottleneck == "gateway"
    more = predictor.predict(OWN.model_copy(update={"gateway": 4}), Machine(cores=64, memory_bytes=1 << 34), 512)
    assert more.rate > huge.rate


def test_a_cache_of_half_of_the_bank_loads_half_of_the_atoms_from_disk() -> None:
    profile = profile_of()
    half = OWN.model_copy(update={"cache_bytes": profile.bank.bytes // 2})
    none = OWN.model_copy(update={"cache_bytes": 0})
    predictor = Predictor(profile)
    whole, part, empty = (predictor.predict(one, MACHINE, 16).demand for one in (OWN, half, none))
    assert part - whole == pytest.approx(0.5 * 0.004)  # disk takes 5 ms, memory 1 ms
    assert empty - whole == pytest.approx(0.004)


def test_time_to_the_first_token_leaves_out_the_steps_after_it() -> None:
    """Alone an answer takes 40 ms, of which 10 ms are the one step after the first token: a quarter."""
    profile = profile_of(step=0.010)
    found = Predictor(profile).predict(OWN, MACHINE, 1)
    assert found.p50 == pytest.approx(0.040)
    assert found.first_token == pytest.approx(0.030)


def test_with_the_model_on_a_gpu_its_time_does_not_count_for_the_cores() -> None:
    on_gpu = profile_of(step=0.010).model_copy(update={"generator_on_gpu": True})
    predictor = Predictor(on_gpu)
    found = predictor.predict(OWN.model_copy(update={"rows": 1}), Machine(cores=64, gpus=1, memory_bytes=1 << 34), 512)
    assert found.bottleneck == "gpu"
    # One row at a time: the only step of an answer takes 10 ms.
    assert found.rate == pytest.approx(100.0)


def test_long_answers_go_alone_and_gather_nothing() -> None:
    profile = profile_of()
    alone = profile.model_copy(update={"workload": profile.workload.model_copy(update={"alone": True})})
    predictor = Predictor(alone)
    assert predictor.batches(OWN, 64).grouped == 1.0
    one, two = (predictor.predict(OWN.model_copy(update={"at_once": places}), MACHINE, 16) for places in (1, 2))
    assert one.rate == two.rate


def test_memory_counts_processes_caches_and_models() -> None:
    profile = profile_of()
    candidate = Candidate(generator=2, bank_loader=3, at_once=2, most_grouped=32, rows=10, cache_bytes=7)
    expected = 7 * 100 + 3 * 7 + 2 * (1000 + 10 * (30 + 20) * 2)
    assert Predictor(profile).memory_bytes(candidate) == expected


def test_every_gateway_of_an_embedded_server_has_an_index_and_a_cache_of_its_own() -> None:
    profile = profile_of()
    memory = profile.memory.model_copy(update={"index": 50})
    predictor = Predictor(profile.model_copy(update={"memory": memory}))
    sizes = {"at_once": 2, "most_grouped": 32, "rows": 10, "cache_bytes": 7}
    model = 1000 + 10 * (30 + 20) * 2
    embedded = Candidate(gateway=3, retriever=3, bank_loader=3, embedded=True, **sizes)
    assert predictor.memory_bytes(embedded) == 4 * 100 + 3 * (50 + 7) + model
    assert predictor.memory_bytes(Candidate(gateway=3, **sizes)) == 6 * 100 + 50 + 7 + model


def test_an_embedded_server_with_more_retrievers_than_gateways_is_refused() -> None:
    with pytest.raises(ValueError, match="type=embedded_apart"):
        Candidate.model_validate({**EMBEDDED_OWN.model_dump(), "retriever": 2})


def test_a_profile_whose_batches_do_not_rise_is_refused() -> None:
    points = [StagePoint(batch=2, seconds=1, busy=1), StagePoint(batch=1, seconds=1, busy=1)]
    with pytest.raises(ValueError, match="type=not_rising"):
        Curve(points=tuple(points))
    with pytest.raises(ValueError, match="type=not_rising"):
        Profile.model_validate({**profile_of().model_dump(), "observed": [observed(2), observed(1)]})


def test_a_stage_that_was_slower_alone_than_in_the_server_does_not_make_observed_loads_slower() -> None:
    slow = profile_of()
    stages = slow.stages.model_copy(update={"retrieve": constant(0.060)})  # in the server the retriever took 2 ms
    predictor = Predictor(slow.model_copy(update={"stages": stages}))
    for one in slow.observed:
        assert predictor.predict(OWN, MACHINE, one.users).rate == pytest.approx(one.rate)
