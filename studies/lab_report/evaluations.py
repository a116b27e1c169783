"""The paper's studies: files of settings for `regrad eval` (evals/*.yaml), fitted to one report."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regrad.settings import read_yaml
from studies.lab_report.config import LabReportConfig

STUDIES = ("methods", "passages", "merges", "drift", "general", "domains", "hard", "notes")
ONE_SEED = ("hard",)
"""Studies that no claim rests on."""
_DOCUMENTS = LabReportConfig.model_fields["documents"].default
"""Numbers in the files; a report with fewer or other ones puts its own there, the last for the last."""

_PLACE = "runs/lab-report"
_COUNT = re.compile(r"\bdocuments-(\d+)")


def path_of(study: str) -> Path:
    """The file of a study."""
    return Path(__file__).parent / "evals" / f"{study}.yaml"


def reference(study: str) -> str:
    """The method that a study's others are compared with."""
    return str(read_yaml(path_of(study))["compare_to"])


def changes(study: str, config: LabReportConfig) -> list[str]:
    """What the report changes in a study's file, as overrides: places, numbers of documents, seeds."""
    data = read_yaml(path_of(study))
    counts = dict(zip(_DOCUMENTS[-len(config.documents) :], config.documents, strict=True))

    def fit(text: str) -> str:
        text = _COUNT.sub(lambda found: f"documents-{counts[int(found[1])]}", text)
        moved = text.startswith(_PLACE) and config.output != os.path.abspath(_PLACE)
        return f"{config.output}{text.removeprefix(_PLACE)}" if moved else text

    fitted = {key: [one for one in data[key] if _is_wanted(one, counts)] for key in ("sets", "methods")}
    fitted = _each_text({**data, **fitted}, fit)
    fitted["seeds"] = list(config.seeds[:1] if study in ONE_SEED else config.seeds)
    return [f"{key}={json.dumps(value)}" for key, value in fitted.items() if value != data[key]]


def _is_wanted(one: Any, counts: Mapping[int, int]) -> bool:
    found = _COUNT.search(one["name"]) if isinstance(one, dict) else None
    return found is None or int(found[1]) in counts


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_text(inner, change) for key, inner in value.items()}
    return [_each_text(inner, change) for inner in value] if isinstance(value, list) else value
