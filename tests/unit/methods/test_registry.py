"""Which settings a method has: what it does not look at is refused, and every file that comes with regrad passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from regrad.errors import ConfigError
from regrad.evaluation.config import EvalConfig
from regrad.methods.registry import FAMILIES, METHODS, MethodConfig
from regrad.settings import Settings, builtin_config, load_settings, parse_settings
from tests.tools.evaluating import method_settings

ROOT = Path(__file__).parents[3]


class One(Settings):
    method: MethodConfig


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"name": "direct", "adapter": "runs/lab/cpt"},
            "method 'direct' takes no adapter; it takes prompt_style, demonstrations, index, retrieval; "
            "adapter is a setting of prag-warm, ft-prag, d-prag, d-prag+icl, tt-sgd, rag-gd-constant, rag-gd, "
            "rag-gd-shuffled, cpt, instruction-cpt, ft-direct, ft-rag, rag-gd-base",
        ),
        (
            {"name": "fast", "method": "regrad", "adapter": "runs/lab/none", "steps": 7, "lr": 1.0},
            "method 'regrad' (fast) takes no adapter, no steps, no lr; it takes prompt_style, demonstrations, ",
        ),
        ({"name": "prag", "bank": "b", "gamma": 2.0}, "gamma is a setting of regrad-online, regrad, regrad+icl"),
        ({"name": "regrad-online", "bank": "b"}, "method 'regrad-online' takes no bank; it takes "),
        ({"name": "cpt", "adapter": "a", "bank_version": 3}, "takes no bank_version; it takes "),
        ({"name": "regrad", "gama": 1.0}, "unknown key 'method.gama'; did you mean 'method.gamma'?"),
        ({"name": "tta", "qqqqq": 1.0}, "unknown key 'method.qqqqq'; the keys here are name, method, prompt_style, "),
        ({"method": "rag"}, "key 'method.name' is required"),
        ({"name": "regrat"}, "key 'method': unknown method 'regrat'; did you mean 'regrad'?"),
        (
            {"name": "rag", "gama": 1.0},
            "takes no gama; it takes prompt_style, demonstrations, index, retrieval; gamma is ",
        ),
        ({"name": ""}, "key 'method': unknown method ''"),
        (["rag"], "a method's name or a mapping with its settings is expected, found ['rag']"),
    ],
)
def test_a_setting_that_a_method_does_not_look_at_is_refused(given: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        parse_settings(One, {"method": given}, "test")


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
