"""The import arrows of docs/architecture.md, and the rules that keep the Ray files thin."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each part of regrad and the other parts that it may import. The foundations are open to all.
FOUNDATIONS = {"errors", "settings", "storage", "locking", "corpus", "prompts", "config"}
ALLOWED = {
    "errors": set(),
    "settings": {"errors"},
    "storage": {"errors"},
    "locking": {"errors", "storage"},
    "corpus": {"errors"},
    "prompts": {"settings", "corpus"},
    "config": {"settings", "prompts"},
    "language_model": FOUNDATIONS,
    "meta_init": FOUNDATIONS | {"language_model"},
    "atoms": FOUNDATIONS | {"language_model", "meta_init"},
    "bank": FOUNDATIONS | {"language_model", "meta_init"},
    "adaptation": FOUNDATIONS | {"language_model", "meta_init", "atoms"},
    "retrieval": FOUNDATIONS,
    "methods": FOUNDATIONS | {"language_model", "meta_init", "atoms", "adaptation", "bank", "retrieval"},
    "evaluation": FOUNDATIONS | {"language_model", "meta_init", "atoms", "adaptation", "bank", "retrieval", "methods"},
    "meta": FOUNDATIONS | {"language_model", "meta_init", "atoms", "evaluation"},
    "lab": FOUNDATIONS | {"language_model", "meta_init", "atoms", "adaptation", "methods", "evaluation", "meta"},
}
RAY_PARTS = {"ray", "ray_jobs", "serve_app"}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrows"
            yield node.module or ""


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "regrad").parts[0].removesuffix(".py")


LIBRARY = [p for p in sorted((ROOT / "regrad").rglob("*.py")) if part_of(p) not in {"cli", "__init__"}]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_library_file_imports_only_what_its_part_may(path: Path) -> None:
    part = part_of(path)
    for module in imports(path):
        top, _, rest = module.partition(".")
        assert top not in RAY_PARTS, f"{path} imports {module}: the library knows no Ray"
        target = rest.split(".")[0]
        if top == "regrad" and target != part:
            assert target in ALLOWED[part], f"{path}: {part} may not import {target}"


def test_the_rules_know_every_part() -> None:
    assert {part_of(path) for path in LIBRARY} == set(ALLOWED)


@pytest.mark.parametrize("folder", ["ray_jobs", "serve_app"])
def test_ray_files_do_not_import_the_command_line(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        assert not [module for module in imports(path) if module.startswith("regrad.cli")], path


@pytest.mark.parametrize("folder", ["ray_jobs", "serve_app"])
def test_ray_files_are_thin(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        assert len(path.read_text().splitlines()) <= 220, path
        assert not [module for module in imports(path) if module.split(".")[0] == "transformers"], path


def test_serve_app_and_ray_jobs_do_not_import_each_other() -> None:
    for folder, other in (("ray_jobs", "serve_app"), ("serve_app", "ray_jobs")):
        for path in (ROOT / folder).glob("*.py"):
            assert other not in {module.split(".")[0] for module in imports(path)}, path
