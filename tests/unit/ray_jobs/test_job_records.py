"""A job's run record: begun before the work, ended with what was made or with the error."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.job_records import recorded
from regrad.bank.config import BankConfig, BuildConfig
from regrad.errors import CorpusError, StorageError
from regrad.rebuild.records import RunRecord
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
