"""Which settings a method has: what it does not look at is refused, and every file that comes with regrad passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from regrad.errors import MethodError
from regrad.evaluation.config import EvalConfig
from regrad.methods.config import MethodConfig
from regrad.methods.registry import METHODS, SETTINGS, check_method, method_of
from regrad.settings import builtin_config, load_settings

ROOT = Path(__file__).parents[2]
OTHER: dict[str, Any] = {
    **{"meta_init": "m", "bank": "b", "bank_version": 2, "adapter": "a", "gamma": 0.5, "weighting": "mean"},
    **{"on_missing": "fail", "prompt_style": "pe", "demonstrations": 2, "steps": 7, "lr": 1.0},
    **{"adapt_on": "suffixes", "in_prompt": False, "seed": 1},
}
"""A value other than the default for every setting."""


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"name": "direct", "adapter": "runs/lab/cpt"},
            "method 'direct' takes no adapter; it takes prompt_style, demonstrations",
        ),
        (
            {"name": "fast", "method": "regrad", "adapter": "runs/lab/none", "steps": 7, "lr": 1.0},
            "method 'regrad' (fast) takes no adapter, no steps, no lr; it takes meta_init, bank, bank_version, gamma, "
            "weighting, on_missing, prompt_style, demonstrations",
        ),
        ({"name": "prag", "bank": "b", "gamma": 2.0}, "method 'prag' takes no gamma; it takes bank"),
        ({"name": "regrad-online", "bank": "b"}, "method 'regrad-online' takes no bank; it takes meta_init, gamma"),
        ({"name": "cpt", "adapter": "a", "bank_version": 3}, "takes no bank_version; it takes adapter"),
    ],
)
def test_a_setting_that_does_nothing_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(MethodError, match=re.escape(text)):
        check_method(MethodConfig.model_validate(given))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_its_settings_one_by_one_and_no_other(name: str) -> None:
    for setting, value in OTHER.items():
        config = MethodConfig.model_validate({"name": name, setting: value})
        if setting in SETTINGS[name]:
            assert method_of(config).name == name
        else:
            with pytest.raises(MethodError, match=f"takes no {setting};"):
                method_of(config)


def test_every_setting_belongs_to_some_method() -> None:
    assert OTHER.keys() == MethodConfig.model_fields.keys() - {"name", "method"}
    assert {setting for taken in SETTINGS.values() for setting in taken} == OTHER.keys()
    fields = MethodConfig.model_fields
    assert all(value != fields[setting].default for setting, value in OTHER.items())


def test_a_setting_at_its_default_is_none_that_was_given() -> None:
    default = MethodConfig(name="direct", adapter=None, gamma=1.0, steps=3, in_prompt=True)
    assert method_of(default) == METHODS["direct"]


def test_all_settings_that_come_with_regrad_and_its_studies_pass() -> None:
    files = [path for path in builtin_config("").rglob("*.yaml") if re.search("^methods:", path.read_text(), re.M)]
    files += (ROOT / "studies").rglob("*.yaml")
    assert {path.stem for path in files} >= {"eval-lab", "eval-rivals-lab", "methods", "merges"}
    for config in (load_settings(EvalConfig, path) for path in files):
        for method in config.methods:
            method_of(method)


def test_all_examples_of_the_documents_and_of_comments_pass() -> None:
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    files += [path for folder in ("configs", "studies") for path in (ROOT / folder).rglob("*.yaml")]
    text = "\n".join(path.read_text() for path in files)
    lines = re.findall(r"^[ #]*- (\{name: .*\})$", text, re.M)
    read = [yaml.safe_load(line) for line in lines]
    found = [MethodConfig.model_validate(one) for one in read if one.get("method", one["name"]) in METHODS]
    assert len([one for one in found if one.kind == "tta"]) >= 5
    for method in found:
        method_of(method)
