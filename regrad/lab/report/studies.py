"""The paper's studies: files of settings for `regrad eval` (configs/studies), fitted to one report."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from regrad.evaluation.config import EvalConfig
from regrad.lab.report.config import LabReportConfig
from regrad.settings import builtin_config, parse_settings, read_yaml

STUDIES = ("methods", "passages", "merges", "drift", "general", "domains", "hard", "notes")
ONE_SEED = ("hard",)
"""Studies that no claim rests on."""
DOCUMENTS = (50, 100, 200, 400)
"""Of the drift study's files; a report with fewer or other numbers puts its own there, the last for the last."""

_PLACE = "runs/lab-report/"
_COUNT = re.compile(r"\bdocuments-(\d+)")


def study(name: str, config: LabReportConfig) -> EvalConfig:
    """The settings of a study with the report's places, numbers of documents, seeds and workers."""
    path = builtin_config(f"studies/{name}.yaml")
    counts = dict(zip(DOCUMENTS[-len(config.documents) :], config.documents, strict=True))
    data = read_yaml(path)
    for part in ("sets", "methods"):
        data[part] = [one for one in data[part] if _wanted(one, counts)]

    def fitted(text: str) -> str:
        text = _COUNT.sub(lambda found: f"documents-{counts[int(found[1])]}", text)
        return f"{config.output}/{text.removeprefix(_PLACE)}" if text.startswith(_PLACE) else text

    seeds = config.seeds[:1] if name in ONE_SEED else config.seeds
    own = {"seeds": list(seeds), "cluster": config.cluster.model_dump()}
    return parse_settings(EvalConfig, _each_text(data, fitted) | own, str(path))


def _wanted(one: Any, counts: Mapping[int, int]) -> bool:
    found = _COUNT.search(one["name"]) if isinstance(one, dict) else None
    return found is None or int(found[1]) in counts


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_text(inner, change) for key, inner in value.items()}
    return [_each_text(inner, change) for inner in value] if isinstance(value, list) else value
