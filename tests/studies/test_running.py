from __future__ import annotations

from pathlib import Path

import pytest

from regrad.errors import ConfigError
from studies.real import plan
from studies.running import run_steps
from studies.step import Command, Step
from tests.tools.refusals import refused


def test_settings_are_checked_before_any_step_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.running.cluster", lambda: pytest.fail("a cluster was started"))
    wrong = Command("eval", plan.path_of("retrieved"), ("compare_to=nobody",))
    with refused(ConfigError, "invalid"):
        run_steps([Step("late", wrong, str(tmp_path))], str(tmp_path), 1, lambda _: None)
