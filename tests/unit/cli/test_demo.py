from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner

from regrad.cli.demo.config import DemoConfig
from regrad.cli.main import regrad


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[DemoConfig]:
    """The settings of each demo that was run."""
    found: list[DemoConfig] = []

    def run_demo(settings: DemoConfig, keep: bool, say: Callable[[str], None]) -> None:
        found.append(settings)

    monkeypatch.setattr("regrad.cli.demo.run.run_demo", run_demo)
    return found


def test_a_quick_demo_is_shorter_lies_elsewhere_and_can_be_changed(ran: list[DemoConfig]) -> None:
    for arguments in ([], ["--quick"], ["--quick", "--set", "train.optimizer.steps=7"]):
        result = CliRunner().invoke(regrad, ["demo", *arguments])
        assert result.exit_code == 0, result.output
    whole, quick, changed = ran
    assert quick.output != whole.output
    assert quick.train.optimizer.steps < whole.train.optimizer.steps / 5
    assert quick.lab.questions < whole.lab.questions
    assert (changed.train.optimizer.steps, changed.output) == (7, quick.output)
