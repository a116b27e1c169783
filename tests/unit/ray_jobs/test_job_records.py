"""A job's run record: begun before the work, ended with what was made or with the error."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest

from ray_jobs.job_records import recorded
from ray_jobs.node_hours import NodeMeter, money_of, nodes_are
from regrad.bank.config import BankConfig, BuildConfig
from regrad.errors import CorpusError, StorageError
from regrad.rebuild.records import Money, RunRecord
from regrad.settings import WorkersConfig
from tests.tools import banks
from tests.tools.refusals import refused


@pytest.fixture
def config(tmp_path: Path) -> BuildConfig:
    workers = WorkersConfig(workers=3)
    return BuildConfig(meta_init="m", corpus="c", bank=BankConfig(uri=f"{tmp_path}/bank"), cluster=workers)


def record(config: BuildConfig) -> RunRecord:
    return RunRecord.model_validate_json(Path(f"{config.bank.uri}.run.json").read_bytes())


def test_it_says_what_was_made_of_what_and_how_long_it_took(config: BuildConfig) -> None:
    def run(settings: BuildConfig) -> str:
        begun = record(settings)
        assert (begun.ended, begun.settings["meta_init"]) == (None, settings.meta_init)
        return f"bank version {banks.fill(settings.bank.uri).label}"

    line = recorded(config, run, "build_bank")
    found = record(config)
    assert (found.step, found.line, found.attempts, found.workers) == ("build_bank", line, 1, 3)
    assert found.ended is not None
    assert found.ended >= found.began
    assert "torch" in found.software
    (made,) = found.outputs
    assert made.place == config.bank.uri
    assert made.digest in line
    assert made.bytes > 0


def test_one_that_failed_says_why_and_one_that_goes_on_counts(config: BuildConfig) -> None:
    def fail(_: BuildConfig) -> str:
        raise CorpusError("there is nothing", code="empty")

    def killed(_: BuildConfig) -> str:
        raise KeyboardInterrupt

    with refused(CorpusError, "empty"):
        recorded(config, fail, "build_bank")
    found = record(config)
    assert (found.line, found.facts) == ("error: there is nothing", {"error": "corpus.empty"})
    with pytest.raises(KeyboardInterrupt):
        recorded(config, killed, "build_bank")
    assert (record(config).ended, record(config).attempts) == (None, 2)
    recorded(config, lambda _: "done", "build_bank")
    assert record(config).attempts == 3
    recorded(config, lambda _: "done again", "build_bank")
    assert record(config).attempts == 1


def test_a_place_that_cannot_be_written_is_found_before_any_work(config: BuildConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    elsewhere = config.model_copy(update={"bank": BankConfig(uri=f"{tmp_path}/file/bank")})
    with pytest.raises(StorageError):
        recorded(elsewhere, lambda _: pytest.fail("it has begun"), "build_bank")


class Clock:
    """A clock that the test sets, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_hours_are_those_of_the_machines_that_were_there_each_for_its_own_time() -> None:
    clock = Clock()
    meter = NodeMeter(clock)
    clock.now = 1800
    meter.there_are(["head", "a100", "a100"])
    clock.now = 3600
    meter.there_are(["head", "a100"])
    clock.now = 9000
    assert meter.hours() == {"a100": 2.5, "head": 2.0, "machine": 0.5}
    clock.now = 12600
    assert meter.hours() == {"a100": 3.5, "head": 3.0, "machine": 0.5}, "asked twice, it counts nothing twice"


def test_a_job_costs_what_its_machines_do_and_nothing_is_said_where_a_price_is_missing() -> None:
    hours = {"a100": 2.0, "head": 1.0, "machine": 0.5}
    assert money_of(hours, WorkersConfig()) is None
    assert money_of(hours, WorkersConfig(node_hour={"a100": 20, "head": 0.4})) is None
    euros = WorkersConfig(node_hour={"a100": 20, "machine": 0.4}, currency="EUR")
    assert money_of(hours, euros) == Money(amount=40.6, currency="EUR")
    assert money_of({"machine": 2.0}, WorkersConfig(node_hour={"machine": 0})) == Money(amount=0, currency="USD")


@pytest.mark.parametrize("fails", [False, True])
def test_a_record_has_the_machines_by_kind_and_their_price_whether_or_not_the_job_succeeds(
    config: BuildConfig, fails: bool
) -> None:
    priced = config.cluster.model_copy(update={"node_hour": {"spot": 3600.0, "machine": 0.0}})
    config = config.model_copy(update={"cluster": priced})

    def run(_: BuildConfig) -> str:
        label = {"ray.io/node-group": "spot"}
        nodes_are([{"Alive": True, "Labels": label}, {"Alive": False, "Labels": label}, {"Alive": True}])
        time.sleep(0.02)
        if fails:
            raise CorpusError("there is nothing", code="empty")
        return "done"

    with suppress(CorpusError):
        recorded(config, run, "build_bank")
    found = record(config)
    assert set(found.node_hours) == {"spot", "machine"}
    assert 0 < found.node_hours["spot"] <= found.node_hours["machine"]
    assert found.cost is not None
    assert found.cost.amount == pytest.approx(3600 * found.node_hours["spot"], abs=1e-5)
