"""The import arrows of docs/architecture.md, and the rules that keep the Ray files thin."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# Each part of regrad and the other parts that it may import. The foundations are open to all.
FOUNDATIONS = {"errors", "text", "digests", "settings", "registry", "storage", "locking", "data", "prompts"}
MODELS = FOUNDATIONS | {"models", "inference", "meta_init", "gradients"}
ALLOWED = {
    "errors": set(),
    "text": set(),
    "digests": set(),
    "settings": {"errors", "text", "storage"},
    "registry": {"errors", "text"},
    "storage": {"errors", "text", "digests"},
    "locking": {"errors", "storage"},
    "data": {"errors", "text", "digests", "settings", "registry", "storage", "locking"},
    "prompts": {"settings", "data"},
    "client": {"errors"},
    "theory": {"errors"},
    "models": FOUNDATIONS,
    "inference": FOUNDATIONS | {"models"},
    "meta_init": FOUNDATIONS | {"models"},
    "gradients": FOUNDATIONS | {"models", "meta_init"},
    "bank": FOUNDATIONS | {"models", "meta_init"},
    "retrieval": FOUNDATIONS | {"models"},
    "training": FOUNDATIONS,
    "training.lora": MODELS | {"bank", "training"},
    "training.predictor": MODELS | {"training", "training.lora"},
    "training.translator": MODELS | {"bank", "training", "training.lora", "training.predictor"},
    "methods": MODELS | {"bank", "retrieval", "training.lora", "training.predictor", "training.translator"},
    "evaluation": MODELS | {"bank", "retrieval", "methods", "training.lora"},
    "training.meta": MODELS | {"training", "evaluation"},
    "training.retriever": MODELS | {"bank", "retrieval", "methods", "training", "training.lora"},
    "training.task_files": FOUNDATIONS | {"retrieval"},
    "training.synthesis": MODELS | {"training", "evaluation"},
    "planning": MODELS | {"bank", "retrieval", "methods"},
    "rebuild": MODELS | {"bank", "retrieval", "evaluation", "training.meta"},
    "lab": MODELS | {"bank", "methods", "evaluation", "training", "training.lora", "training.meta"},
}
RAY_PARTS = {"ray", "ray_jobs", "serve_app"}
STUDY_VERB = ROOT / "regrad" / "cli" / "lab.py"
RAY_FILES = [path for folder in ("ray_jobs", "serve_app") for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrows"
            yield node.module or ""


def part_of(module: str) -> str:
    """The part that a module of regrad belongs to: its first name; of `training` the first two, if it has packages."""
    names = module.split(".")[1:]
    packages = {path.name for path in (ROOT / "regrad" / "training").iterdir() if path.is_dir()}
    return ".".join(names[: 2 if names[0] == "training" and len(names) > 1 and names[1] in packages else 1])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


REGRAD = sorted((ROOT / "regrad").rglob("*.py"))
LIBRARY = [path for path in REGRAD if module_of(path) != "regrad" and part_of(module_of(path)) != "cli"]


def test_the_document_has_the_same_arrows() -> None:
    """The first and the last column of the table in docs/architecture.md."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        parts, _, allowed = (
            (cell.strip() for cell in line.strip("|").split("|")) if line.count("|") == 4 else ("", "", "")
        )
        for name in re.findall(r"`([a-z_.]+)`", parts):
            if name in ALLOWED:
                names = set(allowed.split(", ")) - {"nothing"}
                found[name] = (names - {"foundations"}) | (FOUNDATIONS if "foundations" in names else set())
    assert found == ALLOWED


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_library_file_imports_only_what_its_part_may(path: Path) -> None:
    part = part_of(module_of(path))
    for module in imports(path):
        top = module.split(".")[0]
        assert top not in RAY_PARTS, f"{path} imports {module}: the library knows no Ray"
        if top == "regrad" and part_of(module) != part:
            assert part_of(module) in ALLOWED[part], f"{path}: {part} may not import {module}"


def test_the_files_of_subfolders_are_checked_too() -> None:
    """A walk that sees the top folders only would find nothing wrong below them."""
    ray_files = {str(path.relative_to(ROOT)) for path in RAY_FILES}
    assert {"ray_jobs/evaluate.py", "ray_jobs/_ray_compat/__init__.py", "serve_app/http/app.py"} <= ray_files
    library = {module_of(path) for path in LIBRARY}
    assert {"regrad.errors", "regrad.inference.engine", "regrad.data.formats.jsonl"} <= library


def test_the_rules_know_every_part() -> None:
    assert {part_of(module_of(path)) for path in LIBRARY} == set(ALLOWED)


def test_no_two_public_classes_have_one_name() -> None:
    """One who reads or searches for a class finds the one that is meant."""
    found: dict[str, list[str]] = {}
    for path in (*REGRAD, *RAY_FILES):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert len(found) > 500, "or the walk does not see them"
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_file_is_thin_and_knows_neither_the_command_line_nor_the_other_folder(path: Path) -> None:
    other = {"ray_jobs": "serve_app", "serve_app": "ray_jobs"}[path.relative_to(ROOT).parts[0]]
    for module in imports(path):
        assert not module.startswith("regrad.cli"), f"{path} imports {module}"
        assert module.split(".")[0] not in {"transformers", other}, f"{path} imports {module}"


def test_nothing_imports_a_study_but_the_verb_that_runs_it() -> None:
    others = [path for folder in ("benchmarks", "tests/tools") for path in (ROOT / folder).rglob("*.py")]
    found = [path for path in (*REGRAD, *RAY_FILES, *others) if {"studies"} & {m.split(".")[0] for m in imports(path)}]
    assert found == [STUDY_VERB]


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    files = [*REGRAD, *RAY_FILES, *(ROOT / "studies").rglob("*.py")]
    assert not {path: count for path in files if (count := len(path.read_text().splitlines())) > 400}
