from __future__ import annotations

import json
from pathlib import Path

import pytest

from regrad.errors import ConfigError, EvaluationError
from regrad.rebuild.records import Records
from regrad.rebuild.steps import begun
from regrad.storage import Storage
from studies.rag_gd.__main__ import run
from studies.rag_gd.config import RagGdConfig
from studies.rag_gd.plan import make_steps
from studies.real import plan
from studies.running import Progress, StudyRecord, run_steps
from studies.step import Command, Step
from tests.tools.refusals import refused


def test_settings_are_checked_before_any_step_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.running.cluster", lambda: pytest.fail("a cluster was started"))
    wrong = Command("eval", plan.path_of("retrieved"), ("compare_to=nobody",))
    with refused(ConfigError, "invalid"):
        run_steps([Step("late", wrong, str(tmp_path))], str(tmp_path), 1, lambda _: None)


def test_a_second_run_of_a_study_into_one_output_is_refused(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    with Progress(output).alone():
        with refused(EvaluationError, "study_busy", uri=output):
            run_steps([], output, 1, lambda _: pytest.fail("it began"))
        with refused(EvaluationError, "study_busy", uri=output):
            run(RagGdConfig(output=output))
        with Progress(str(tmp_path / "other")).alone():
            pass
    assert run_steps([], output, 1, lambda _: None) == 0


def test_a_run_is_recorded_as_that_of_a_rebuild_and_notes_from_before_count(tmp_path: Path) -> None:
    config, said = RagGdConfig(output=str(tmp_path)), "made before"
    old, new = make_steps(config)[:2]
    note = {"line": said, "seconds": 3.0, "clock": 5.0, "settings": old.work.content()}
    Storage(tmp_path).write(f"steps/{old.name.replace(' ', '-')}.json", json.dumps(note).encode())
    progress = Progress(config.output)
    assert (progress.done(old), progress.done(new), progress.clock()) == (True, False, 5.0)
    progress.finish(begun(new.recorded), "made", 3.0, 8.0)
    assert (progress.done(new), progress.clock()) == (True, 8.0)
    records = {record.step: record for record in Records(Storage(tmp_path), "steps", kind=StudyRecord).all()}
    assert (records[new.name].whole, records[new.name].settings) == (True, new.work.content())
    assert records[""].line == said
