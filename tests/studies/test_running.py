from __future__ import annotations

from pathlib import Path

import pytest

from regrad.errors import ConfigError, EvaluationError
from studies.rag_gd.__main__ import run
from studies.rag_gd.config import RagGdConfig
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
