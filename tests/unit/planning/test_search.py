"""What is searched, what is chosen, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from regrad.errors import PlanningError
from regrad.planning.prediction import Predictor
from regrad.planning.profile import Bank, GpuPart, Machine, Profile, check_profile, read_profile, write_profile
from regrad.planning.search import Choice, Limits, best, check_processors, fits, fitting, front, predicted
from tests.tools.refusals import refused
from tests.unit.planning.examples import BANK, EMBEDDED_OWN, MACHINE, OWN, profile_of, with_embedded

CPUS = {"gateway": 0.25, "retriever": 0.25, "bank_loader": 0.25, "generator": 0.5}
LIMITS = Limits(MACHINE, CPUS, {}, most_replicas=2, most_rows=8)


def choices(users: int = 16, limits: Limits = LIMITS, profile: Profile | None = None) -> list[Choice]:
    predictor = Predictor(profile or profile_of())
    return predicted(predictor, fitting(predictor, OWN, limits, BANK), limits.machine, users)


def test_every_configuration_that_is_searched_fits_the_cores_that_its_replicas_reserve() -> None:
    found = choices()
    assert all(LIMITS.reserves(one.candidate)[0] <= 2 for one in found)
    assert any(one.candidate.generator == 2 for one in found)
    assert any(one.candidate == OWN for one in found)


def test_the_best_has_the_highest_rate_within_the_bound_and_takes_no_more_than_it_needs() -> None:
    found = choices()
    free = best(found, None)
    assert free.predicted.rate >= max(one.predicted.rate for one in found) * 0.98
    assert free.candidate.at_once == 1  # of equals the one that takes least
    assert sum(free.candidate.replicas(role) for role in CPUS) == 4
    tight = best(found, free.predicted.p50)
    assert tight.predicted.p50 <= free.predicted.p50


def test_embedded_servers_are_searched_where_one_was_measured_and_the_limits_allow_it() -> None:
    both = with_embedded(profile_of(), 0.8)
    found = [one.candidate for one in choices(profile=both)]
    embedded = [one for one in found if one.embedded]
    assert [one for one in found if not one.embedded] == [one.candidate for one in choices()]
    assert EMBEDDED_OWN in embedded
    assert {one.gateway for one in embedded} == {1, 2}
    assert all(one.gateway == one.retriever == one.bank_loader for one in embedded)
    assert all(LIMITS.reserves(one) == (0.25 * one.gateway + 0.5 * one.generator, 0) for one in embedded)
    assert len(set(embedded)) == len(embedded)
    kept = replace(LIMITS, embedded=(False,))
    assert [one.candidate for one in choices(limits=kept, profile=both)] == [one.candidate for one in choices()]


@pytest.mark.parametrize(("share", "embedded"), [(0.8, True), (1.0, True), (1.25, False)])
def test_embedding_is_chosen_by_what_it_was_observed_to_cost(share: float, embedded: bool) -> None:
    """Of equals the embedded one is better: it has two processes fewer."""
    chosen = best(choices(profile=with_embedded(profile_of(), share)), None)
    assert chosen.candidate.embedded is embedded
    other = best([one for one in choices() if not one.candidate.embedded], None)
    assert chosen.predicted.rate == pytest.approx(other.predicted.rate / min(1.0, share), rel=0.02)
    assert chosen.candidate.processes == (2 if embedded else 4)


def test_an_embedded_server_fits_where_four_deployments_do_not() -> None:
    predictor = Predictor(profile_of())
    small = replace(LIMITS, machine=Machine(cores=1, memory_bytes=1 << 34))
    assert fits(predictor, EMBEDDED_OWN, small)
    assert not fits(predictor, OWN, small)
    assert fits(predictor, OWN, LIMITS)
    assert not fits(predictor, OWN, replace(LIMITS, machine=Machine(cores=2, memory_bytes=1000)))


def test_a_bound_that_nothing_meets_is_an_error_with_the_best_that_can_be_reached() -> None:
    found = choices()
    with pytest.raises(PlanningError) as caught:
        best(found, 0.001)
    assert caught.value.code == "planning.bound_out_of_reach"
    assert caught.value.fields["best_ms"] == pytest.approx(1e3 * min(one.predicted.p50 for one in found))


def test_nothing_on_the_front_is_beaten_in_both_and_nothing_that_beats_it_is_left_out() -> None:
    found = [one for users in (1, 4, 16, 64) for one in choices(users)]
    chosen = front(found)
    for one, later in pairwise(chosen):
        assert one.predicted.first_token < later.predicted.first_token
        assert one.predicted.rate < later.predicted.rate
    for one in found:
        assert any(
            kept.predicted.first_token <= one.predicted.first_token and kept.predicted.rate * 1.02 >= one.predicted.rate
            for kept in chosen
        )


@pytest.mark.parametrize("memory", [1000, 1499])
def test_a_model_that_does_not_fit_the_memory_is_refused_with_what_it_needs(memory: int) -> None:
    limits = Limits(Machine(cores=2, memory_bytes=memory), CPUS, {})
    with pytest.raises(PlanningError) as caught:
        choices(limits=limits)
    assert caught.value.code == "planning.no_room"
    assert caught.value.fields["needed"] == 4 * 100 + 1000 + 50 * 2
    assert choices(limits=Limits(Machine(cores=2, memory_bytes=1500), CPUS, {}))


def test_of_a_base_over_several_gpus_each_has_room_for_its_part() -> None:
    profile = profile_of(step=0.01)
    parts = (GpuPart(model=600, token=1), GpuPart(model=400, token=1))
    memory = profile.memory.model_copy(update={"parts": parts})
    profile = profile.model_copy(update={"memory": memory, "generator_on_gpu": True, "generator_gpus": 2})

    def of(gpu_bytes: int) -> list[Choice]:
        machine = Machine(cores=2, gpus=2, memory_bytes=1 << 34, gpu_bytes=gpu_bytes)
        return choices(limits=replace(LIMITS, machine=machine, gpus={"generator": 2.0}), profile=profile)

    fullest = 600 + 50  # with the keys and values of one row
    assert {one.candidate.rows for one in of(fullest)} == {1}
    with refused(PlanningError, "no_room", model=fullest):
        of(fullest - 1)


def test_too_few_cores_or_gpus_for_one_replica_each_are_refused() -> None:
    with pytest.raises(PlanningError) as caught:
        check_processors(OWN, Limits(Machine(cores=1, memory_bytes=1 << 34), CPUS, {}))
    assert caught.value.code == "planning.no_cores"
    with pytest.raises(PlanningError):
        check_processors(OWN, Limits(MACHINE, CPUS, {"generator": 1.0}))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"fingerprint": "f" * 16}, "MetaInit"),
        ({"bank": Bank(codec="int8", record_bytes=250, passages=400)}, "codec"),
        ({"method": "rag"}, "method"),
        ({"k": 5}, "passages a question (k)"),
        ({"embedded": True}, "`embedded`"),
        ({"gpus": 1}, "GPUs of a generator"),
    ],
)
def test_a_profile_of_another_server_is_refused(change: dict, what: str) -> None:
    profile = profile_of()
    right = {"fingerprint": profile.fingerprint, "bank": profile.bank, "method": "regrad", "k": 3}
    right |= {"embedded": False, "gpus": 0}
    check_profile(profile, **right)
    with pytest.raises(PlanningError) as caught:
        check_profile(profile, **{**right, **change})
    assert caught.value.code == "planning.other_profile"
    assert caught.value.fields["what"] == what


@pytest.mark.parametrize("embedded", [False, True])
def test_a_profile_of_both_servers_holds_for_either(embedded: bool) -> None:
    profile = with_embedded(profile_of(), 0.8)
    check_profile(profile, profile.fingerprint, profile.bank, "regrad", 3, embedded, 0)


def test_a_bank_that_has_grown_is_planned_for_with_the_same_profile() -> None:
    profile = profile_of()
    grown = Bank(codec="float32", record_bytes=1000, passages=800)
    check_profile(profile, profile.fingerprint, grown, "regrad", 3, embedded=False, gpus=0)
    same_cache = Predictor(profile, grown).predict(OWN, MACHINE, 16)
    assert same_cache.demand > Predictor(profile).predict(OWN, MACHINE, 16).demand


def test_a_profile_comes_back_as_it_was_written_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "profile.json"
    write_profile(str(place), profile_of())
    assert read_profile(str(place)) == profile_of()
    place.write_text(place.read_text().replace('"cores": 2', '"cores": 0'))
    with pytest.raises(PlanningError) as caught:
        read_profile(str(place))
    assert caught.value.code == "planning.bad_profile"
    with pytest.raises(PlanningError) as caught:
        read_profile(str(tmp_path / "other.json"))
    assert caught.value.code == "planning.no_profile"


def test_a_profile_from_before_embedded_servers_were_measured_is_still_read(tmp_path: Path) -> None:
    old = profile_of().model_dump(mode="json")
    del old["other"], old["configuration"]["embedded"], old["memory"]["index"]
    (tmp_path / "profile.json").write_text(json.dumps(old))
    found = read_profile(f"{tmp_path}/profile.json")
    assert found == profile_of()
    assert list(found.servers) == [False]


def test_a_profile_of_two_servers_comes_back_and_one_of_the_same_server_twice_is_refused(tmp_path: Path) -> None:
    place, both = f"{tmp_path}/profile.json", with_embedded(profile_of(), 0.8)
    write_profile(place, both)
    assert read_profile(place) == both
    write_profile(place, both.model_copy(update={"configuration": EMBEDDED_OWN}))
    with refused(PlanningError, "bad_profile", uri=place):
        read_profile(place)
