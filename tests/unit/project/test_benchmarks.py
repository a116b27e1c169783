"""Benchmarks are not run by the tests; that what they import is there is seen without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BENCHMARKS = ROOT / "benchmarks"
FILES = sorted(BENCHMARKS.rglob("*.py"))
OURS = {"regrad", "ray_jobs", "serve_app", "studies"} | {path.stem for path in BENCHMARKS.iterdir()}


def place_of(module: str) -> Path | None:
    """The file or package of a module of ours, as a benchmark finds it."""
    for root in (BENCHMARKS, ROOT):
        base = root.joinpath(*module.split("."))
        for place in (base / "__init__.py", base.with_suffix(".py")):
            if place.is_file():
                return place
        if base.is_dir():
            return base
    return None


@cache
def names_in(place: Path) -> set[str]:
    """What can be imported from a module: its top-level names, and the modules of its package."""
    folder = place if place.is_dir() else place.parent
    found = {path.stem for path in folder.iterdir()} if place.is_dir() or place.name == "__init__.py" else set()
    if place.is_dir():
        return found
    for node in ast.walk(ast.parse(place.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(each.asname or each.name) for each in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def imports_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The modules of ours that a file imports, each with the names that it takes from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            yield node.module, [each.name for each in node.names]
        elif isinstance(node, ast.Import):
            yield from ((each.name, []) for each in node.names if each.name.split(".")[0] in OURS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_what_a_benchmark_imports_is_there(path: Path) -> None:
    for module, names in imports_of(path):
        place = place_of(module)
        assert place is not None, f"{path.name} imports {module}, which is not there"
        missing = set(names) - names_in(place)
        assert not missing, f"{path.name} imports {sorted(missing)} from {module}, which has no such name"
