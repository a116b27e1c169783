"""Private names of Ray and transformers stand in one place each, and releases that may lack them are not installed."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[3]
FOLDERS = ("ray_jobs", "serve_app", "regrad", "benchmarks", "studies")
HOME = "ray_jobs/_ray_compat"
KERNELS = "regrad/inference/kernels.py"


def names(source: str) -> Iterator[str]:
    """Every module and attribute that is named, with its dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def private_names(source: str) -> set[str]:
    return {name for name in names(source) if re.match(r"ray(\.\w+)*\._(private|internal)\b", name)}


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.worker",
        "from ray import _private",
        "from ray.train.v2._internal.constants import X",
        "def f():\n    from ray.serve._private import utils",
        "import ray\nray._private.worker.x = 1",
    ],
)
def test_a_private_name_is_seen(source: str) -> None:
    assert private_names(source)


@pytest.mark.slow
def test_private_names_of_ray_stand_in_one_folder() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.parent.relative_to(ROOT)) for path in files if private_names(path.read_text())}
    assert found == {HOME}


@pytest.mark.slow
def test_the_private_name_of_transformers_that_is_written_stands_in_one_file() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    private = re.compile(r".+\._attn_implementation\w*|transformers\.(.+\.)?_\w+")
    found = {str(path.relative_to(ROOT)) for path in files if any(map(private.fullmatch, names(path.read_text())))}
    assert found == {KERNELS}


@pytest.mark.parametrize("name", ["ray", "deepspeed", "transformers"])
def test_the_next_minor_release_is_not_installed(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = next(found for text in project["dependencies"] if (found := Requirement(text)).name == name)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = next(Version(line.partition("==")[2]) for line in lines if line.startswith(f"{name}=="))
    assert pinned in wanted.specifier
    assert Version(f"{pinned.major}.{pinned.minor}.99") in wanted.specifier
    assert Version(f"{pinned.major}.{pinned.minor + 1}.0") not in wanted.specifier
