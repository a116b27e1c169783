"""Which settings a method has: what it does not look at is refused, and every file that comes with regrad passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from regrad.evaluation.config import EvalConfig
from regrad.methods.registry import FAMILIES, METHODS, MethodConfig, takers
from regrad.settings import Settings, builtin_config, load_settings, parse_settings
from tests.tools.evaluating import method_settings
from tests.tools.refusals import refused_settings

ROOT = Path(__file__).parents[3]


class One(Settings):
    method: MethodConfig


@pytest.mark.parametrize(
    ("given", "problem", "key", "near"),
    [
        ({"name": "direct", "adapter": "runs/lab/cpt"}, "foreign_setting", "method", ""),
        ({"name": "fast", "method": "regrad", "steps": 7, "lr": 1.0}, "foreign_setting", "method", ""),
        ({"name": "prag", "bank": "b", "gamma": 2.0}, "foreign_setting", "method", ""),
        ({"name": "regrad-online", "bank": "b"}, "foreign_setting", "method", ""),
        ({"name": "cpt", "adapter": "a", "bank_version": 3}, "foreign_setting", "method", ""),
        ({"name": "rag", "gama": 1.0}, "foreign_setting", "method", ""),
        ({"name": "regrad", "gama": 1.0}, "extra_forbidden", "method.gama", "method.gamma"),
        ({"name": "tta", "qqqqq": 1.0}, "extra_forbidden", "method.qqqqq", ""),
        ({"method": "rag"}, "missing", "method.name", ""),
        ({"name": "regrat"}, "unknown_method", "method", "regrad"),
        ({"name": ""}, "unknown_method", "method", ""),
        (["rag"], "not_a_method", "method", ""),
    ],
)
def test_a_setting_that_a_method_does_not_look_at_is_refused(given: Any, problem: str, key: str, near: str) -> None:
    with refused_settings(problem, key, near):
        parse_settings(One, {"method": given}, "test")


def test_a_foreign_setting_is_refused_with_the_methods_that_take_it() -> None:
    with refused_settings("foreign_setting") as info:
        parse_settings(One, {"method": {"name": "rag", "gama": 1.0}}, "test")
    assert takers("gamma")
    assert f"gamma is a setting of {', '.join(takers('gamma'))}" in str(info.value)


def test_each_method_belongs_to_one_family_and_is_read_as_it() -> None:
    for name in METHODS:
        families = [family for family in FAMILIES if name in {info.name for info in family.METHODS}]
        assert [type(method_settings(name))] == families
        assert method_settings("a label", method=name).info.name == name


def test_the_documented_table_has_a_row_for_each_method() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \| (yes|no)\b.*\|$", text.split("weight update for this request")[1], re.M)
    documented = {name: shown == "yes" for names, shown in rows for name in re.findall(r"`(.+?)`", names)}
    assert documented == {name: info.passages_in_prompt for name, info in METHODS.items()}


def test_all_settings_that_come_with_regrad_and_its_studies_pass() -> None:
    files = [path for path in builtin_config("").rglob("*.yaml") if re.search("^methods:", path.read_text(), re.M)]
    files += (ROOT / "studies" / "lab_report").rglob("*.yaml")  # those of `real` get their sets from its plan
    assert {path.stem for path in files} >= {"eval-lab", "eval-baselines-lab", "methods", "merges"}
    assert all(load_settings(EvalConfig, path).methods for path in files)


def test_all_examples_of_the_documents_and_of_comments_pass() -> None:
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    files += [path for folder in ("configs", "studies") for path in (ROOT / folder).rglob("*.yaml")]
    text = "\n".join(path.read_text() for path in files)
    lines = re.findall(r"^[ #]*- (\{name: .*\})$", text, re.M)
    read = [yaml.safe_load(line) for line in lines]
    found = [method_settings(**one) for one in read if one.get("method", one["name"]) in METHODS]
    assert len([one for one in found if one.kind == "tta"]) >= 5
