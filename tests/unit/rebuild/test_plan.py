"""A plan says hours, bytes and money by what was measured, and that the rest is unknown."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from regrad.errors import RebuildError
from regrad.rebuild.flow import Rebuild, rebuild
from regrad.rebuild.plan import StepEstimate, make_plan
from regrad.rebuild.records import CostConfig, MadeOutput, Records, RunRecord
from regrad.storage import Storage
from tests.tools.rebuilding import cheap_rebuild
from tests.tools.refusals import refused


def measured(output: Path, **changes: object) -> None:
    """A run of the step `bank`: 1,000 things in 100 s with two workers, of which both were at work for 80 s."""
    record = RunRecord(
        step="bank",
        key="0" * 16,
        settings={},
        like="bank",
        software={},
        revision=None,
        host="a",
        began=datetime(2026, 1, 1, tzinfo=UTC),
        ended=datetime(2026, 1, 1, 1, tzinfo=UTC),
        seconds=100.0,
        busy_seconds=160.0,
        workers=2,
        unit="things",
        count=1000,
        outputs=(MadeOutput(place="bank", bytes=5000, digest="d"),),
    )
    Records(Storage(output)).write(record.model_copy(update=changes))


def planned(job: Rebuild, step: str = "bank", **rates: float) -> StepEstimate:
    return next(one for one in make_plan(job, rates).estimates if one.step == step)


def test_without_a_measurement_it_says_unknown(tmp_path: Path) -> None:
    plan = make_plan(cheap_rebuild(str(tmp_path)), {})
    assert {(one.seconds, one.bytes, one.money) for one in plan.estimates} == {(None, None, None)}
    assert plan.as_json()["total"]["seconds"] == {"known": 0, "complete": False}
    assert "unknown" in plan.described()
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_a_step_takes_its_start_and_its_work_by_number_and_workers(tmp_path: Path) -> None:
    measured(tmp_path)
    job = with_step(cheap_rebuild(str(tmp_path), cost=CostConfig(node_hour=3.6, nodes=2)), workers=4, count=10_000)
    one = planned(job)
    # 100 s less 160 / 2 s of work are 20 s of start; 10,000 things at 0.16 s each, by four workers, are 400 s.
    assert one.seconds == pytest.approx(420.0)
    assert one.bytes == 50_000
    assert one.money == pytest.approx(420 / 3600 * 2 * 3.6)


def test_without_a_measure_of_the_work_all_of_the_time_is_work(tmp_path: Path) -> None:
    measured(tmp_path, busy_seconds=None)
    assert planned(with_step(cheap_rebuild(str(tmp_path)), workers=2, count=2000)).seconds == pytest.approx(200.0)


@pytest.mark.parametrize(
    "changes", [{"attempts": 2}, {"seconds": None}, {"ended": None}, {"like": "another"}, {"count": 0}], ids=str
)
def test_a_run_that_was_cut_or_was_of_another_kind_is_no_measurement(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    measured(tmp_path, **changes)
    assert planned(cheap_rebuild(str(tmp_path))).seconds is None


def test_a_given_rate_stands_in_until_something_is_measured(tmp_path: Path) -> None:
    job = cheap_rebuild(str(tmp_path))
    assert planned(job, bank=0.5).seconds == pytest.approx(400.0)
    assert planned(job, bank=0.5).bytes is None
    measured(tmp_path)
    assert planned(job, bank=0.5).seconds == pytest.approx(20 + 0.16 * 200)
    with refused(RebuildError, "unknown_rate", step="banks"):
        make_plan(job, {"banks": 1.0})


def test_what_is_done_takes_nothing_and_the_rest_is_planned_by_it(tmp_path: Path) -> None:
    rebuild(cheap_rebuild(str(tmp_path)), lambda _: None)
    done = make_plan(cheap_rebuild(str(tmp_path)), {})
    assert done.left == []
    other = make_plan(cheap_rebuild(str(tmp_path), "another"), {})
    assert [one.step for one in other.left] == ["index", "bank", "eval"]
    assert all(one.seconds is not None for one in other.left)
    assert all(one.bytes == 6 for one in other.left), "twice as many things as before, of three bytes"


def test_an_evaluation_that_has_changed_is_planned_for_the_version_in_force_too(tmp_path: Path) -> None:
    rebuild(cheap_rebuild(str(tmp_path)), lambda _: None)
    job = cheap_rebuild(str(tmp_path), "another")
    changed = replace(job, evaluation=lambda version: replace(job.evaluation(version), key=f"new-{version.id}"))
    assert [one.step for one in make_plan(changed, {}).left] == ["index", "bank", "eval", "eval"]


def with_step(job: Rebuild, workers: int, count: int) -> Rebuild:
    """The rebuild whose step `bank` has so many workers and things to do."""
    steps = [replace(step, workers=workers, count=lambda: count) if step.name == "bank" else step for step in job.steps]
    return replace(job, steps=steps)
