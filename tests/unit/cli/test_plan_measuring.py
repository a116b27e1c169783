"""Which servers `regrad plan` measures and checks, under what loads; the servers themselves are not started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from regrad.cli.plan import job
from regrad.cli.plan.report import PlanReport
from regrad.errors import PlanningError
from regrad.planning import stages
from regrad.planning.config import PlanConfig
from regrad.planning.profile import Observed, Profile, read_profile
from regrad.planning.stages import MeasuredStages
from regrad.settings import load_settings
from serve_app.config import ServeConfig
from tests.tools.refusals import refused
from tests.tools.releasing import setup
from tests.unit.planning import examples

EMBEDDED_SHARE = 0.8


class Started:
    """In the place of the servers that a plan starts: what was started, and the loads on each."""

    def __init__(self) -> None:
        self.servers: list[ServeConfig] = []
        self.loads: list[tuple[bool, int]] = []

    @contextmanager
    def loaded(self, config: ServeConfig, _: Any) -> Iterator[Started]:
        self.servers.append(config)
        yield self

    def observe(self, users: int, _: float) -> Observed:
        embedded = self.servers[-1].embedded
        self.loads.append((embedded, users))
        profile = examples.with_embedded(examples.profile_of(), EMBEDDED_SHARE)
        (found,) = [one for one in profile.servers[embedded].observed if one.users == users]
        return found


def measured(profile: Profile) -> MeasuredStages:
    return MeasuredStages(profile.stages, profile.memory, profile.workload, profile.fingerprint, profile.bank)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    started = Started()
    monkeypatch.setattr("serve_app.app.check_index", lambda *_: None)
    monkeypatch.setattr(job, "measure", lambda *_: measured(examples.profile_of()))
    monkeypatch.setattr(job, "cluster", nullcontext)
    monkeypatch.setattr(job, "loaded", started.loaded)
    monkeypatch.setattr(job, "_check_room", lambda *_: None)
    return started


def plan(folder: Path, *settings: str, **args: Any) -> tuple[PlanReport, Profile]:
    places = setup(folder).model_dump(mode="json", include={"meta_init", "bank", "index"})
    (folder / "serve.yaml").write_text(yaml.safe_dump({"applications": [{"args": {**places, **args}}]}))
    (folder / "questions.jsonl").write_text('{"question": "Who?", "answers": ["me"]}\n')
    given = [
        f"serve={folder}/serve.yaml",
        f"output={folder}/plan",
        f"questions={{name: q, path: {folder}/questions.jsonl}}",
        "machine={cores: 2, memory_bytes: 17179869184}",
        "measuring.users=[1, 4, 64]",
        "most_rows=8",
    ]
    report = job.plan(load_settings(PlanConfig, None, [*given, *settings]), lambda _: None)
    return report, read_profile(f"{folder}/plan/profile.json")


@pytest.mark.slow
@pytest.mark.parametrize("embedded", [False, True])
def test_all_loads_are_put_on_the_given_server_and_then_on_the_other(
    tmp_path: Path, started: Started, embedded: bool
) -> None:
    report, profile = plan(tmp_path, embedded=embedded)
    assert started.loads == [(each, users) for each in (embedded, not embedded) for users in (1, 4, 64)]
    assert profile.configuration.embedded is embedded
    assert profile.configuration == report.given.candidate
    assert profile.other is not None
    assert [one.rate for one in profile.servers[False].observed] == pytest.approx([25.0, 40.0, 125.0])
    assert [one.rate for one in profile.servers[True].observed] == pytest.approx([31.25, 50.0, 156.25])
    assert report.chosen.candidate.embedded


def test_the_other_server_is_not_measured_where_the_plan_may_not_change_it(tmp_path: Path, started: Started) -> None:
    report, profile = plan(tmp_path, "change_embedded=false")
    assert {embedded for embedded, _ in started.loads} == {False}
    assert profile.other is None
    assert not report.chosen.candidate.embedded


def test_the_other_server_is_not_measured_where_it_has_no_room(tmp_path: Path, started: Started) -> None:
    _, profile = plan(tmp_path, embedded=True, retriever={"num_cpus": 10_000})
    assert {embedded for embedded, _ in started.loads} == {True}
    assert profile.other is None


def two_gpus(monkeypatch: pytest.MonkeyPatch, here: int = 2) -> list[str]:
    """Settings of a generator over two GPUs, on a machine that has so many."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: here)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=1 << 34))
    return ["machine.gpus=2"]


def test_a_base_over_several_gpus_is_measured_as_the_server_loads_it(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loaded(Exception):
        pass

    def load(_: Any, devices: tuple[str, ...]) -> None:
        raise Loaded(*devices)

    monkeypatch.setattr(job, "measure", lambda *_: measured(examples.profile_of(step=0.01)))
    _, profile = plan(tmp_path, *two_gpus(monkeypatch), generator={"num_gpus": 2})
    assert (profile.generator_on_gpu, profile.generator_gpus) == (True, 2)
    monkeypatch.setattr("regrad.planning.stages.load_language_model", load)
    monkeypatch.setattr(job, "measure", stages.measure)
    with pytest.raises(Loaded) as caught:
        plan(tmp_path, *two_gpus(monkeypatch), generator={"num_gpus": 2})
    assert caught.value.args == ("cuda:0", "cuda:1")


def test_what_has_more_gpus_than_are_here_is_not_measured_here(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused(PlanningError, "too_few_gpus", expected=2, found=1):
        plan(tmp_path, *two_gpus(monkeypatch, here=1), generator={"num_gpus": 2})
    assert not started.servers


def test_a_check_runs_the_chosen_server_embedded_as_it_is_planned(tmp_path: Path, started: Started) -> None:
    report, _ = plan(tmp_path, "check=true", "users=64")
    given, chosen = started.servers[-2:]
    assert [given.embedded, chosen.embedded] == [False, True]
    assert chosen.gateway.max_replicas == report.chosen.candidate.gateway
    assert report.figures["gain_over_default"] == pytest.approx(1 / EMBEDDED_SHARE)
