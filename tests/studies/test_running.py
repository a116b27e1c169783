from __future__ import annotations

import json
from pathlib import Path

import pytest

from regrad.errors import ConfigError, EvaluationError, RebuildError
from regrad.rebuild.records import Records
from regrad.rebuild.steps import begun
from regrad.storage import Storage
from studies.rag_gd.__main__ import run
from studies.rag_gd.config import RagGdConfig
from studies.rag_gd.plan import make_steps
from studies.real import plan
from studies.running import Progress, run_steps
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


def test_a_run_is_recorded_as_that_of_a_rebuild(tmp_path: Path) -> None:
    config = RagGdConfig(output=str(tmp_path))
    step, progress = make_steps(config)[0], Progress(config.output)
    assert (progress.done(step), progress.clock()) == (False, 0.0)
    progress.finish(begun(step.recorded), "made", 3.0, 8.0)
    assert (progress.done(step), progress.clock()) == (True, 8.0)
    (record,) = Records(Storage(tmp_path), "steps").all()
    assert (record.whole, record.settings, record.line) == (True, step.work.content(), "made")


def test_a_step_of_other_settings_is_refused_and_they_are_named(tmp_path: Path) -> None:
    """One that an older version did, which did not know all of today's settings, is done."""
    config = Path(plan.__file__).parent / "train.yaml"
    first, other = (Command("train", config, (f"seed={seed}",)) for seed in (0, 1))
    before = first.content()
    del before["shape"]["in_prompt_probability"]
    progress = Progress(str(tmp_path))
    progress.finish(begun(Step("start", first, "").recorded).model_copy(update={"settings": before}), "made", 1.0, 1.0)
    assert progress.done(Step("start", first, ""))
    with refused(EvaluationError, "other_settings", step="start", keys=["seed"]):
        progress.done(Step("start", other, ""))


def test_a_note_of_an_earlier_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    config = RagGdConfig(output=str(tmp_path))
    step = make_steps(config)[0]
    note = {"line": "made", "seconds": 3.0, "clock": 5.0, "settings": step.work.content()}
    Storage(tmp_path).write(f"steps/{step.name.replace(' ', '-')}.json", json.dumps(note).encode())
    with refused(RebuildError, "record_damaged"):
        Progress(config.output).done(step)
