"""The alerts on made-up traffic, by Prometheus itself: `apt-get install prometheus` brings promtool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMTOOL = shutil.which("promtool")
TESTS = Path(__file__).with_name("alerts.yaml")
RULES = Path(__file__).parents[3] / "docs/prometheus/regrad-rules.yaml"
ALERTS = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool here (Debian: prometheus)")


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(ALERTS)
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(ALERTS)


@needs_promtool
def test_prometheus_loads_the_rules() -> None:
    found = promtool("check", "rules", RULES)
    assert found.returncode == 0, found.stderr
    assert f"{len(ALERTS)} rules found" in found.stdout


@needs_promtool
@pytest.mark.slow
def test_alerts_fire_when_they_should_and_for_the_application_in_trouble() -> None:
    found = promtool("test", "rules", TESTS)
    assert found.returncode == 0, found.stdout + found.stderr


@needs_promtool
@pytest.mark.slow
@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_that_says_nothing_is_found(alert: str, tmp_path: Path) -> None:
    rules: dict[str, Any] = yaml.safe_load(RULES.read_text())
    for rule in rules["groups"][0]["rules"]:
        if rule["alert"] == alert:
            rule["expr"] = f"({rule['expr']}) > 1e9"
    (tmp_path / RULES.name).write_text(yaml.safe_dump(rules))
    tests = yaml.safe_load(TESTS.read_text()) | {"rule_files": [RULES.name]}
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(tests))
    found = promtool("test", "rules", tmp_path / "alerts.yaml")
    assert found.returncode != 0 and alert in found.stdout + found.stderr
