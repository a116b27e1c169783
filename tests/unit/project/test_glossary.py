"""The glossary against the code: every letter in the name of a tensor is explained, and in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from regrad.bank.codecs import CODECS

ROOT = Path(__file__).parents[3]
CODE = [path for folder in ("regrad", "ray_jobs", "serve_app", "studies") for path in (ROOT / folder).rglob("*.py")]
TERMS = [ROOT / "docs" / name for name in ("architecture.md", "glossary.md", "extending.md")]


def names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr


def test_every_letter_in_the_name_of_a_tensor_is_explained() -> None:
    shapes = [re.fullmatch(r"_?[a-z][a-z0-9_]*_([A-Z]{1,5})", name) for path in CODE for name in names(path)]
    used = {letter for shape in shapes if shape for letter in shape[1]}
    table = (ROOT / "docs" / "glossary.md").read_text().partition("## Letters in the names of tensors")[2]
    assert used == set(re.findall(r"^\| ([A-Z]) \|", table, re.M))


def test_what_one_page_lists_is_not_listed_again() -> None:
    """Two lists of codecs, or of letters, were never the same for long."""
    listed = {path.name: [name for name in CODECS if f"`{name}`" in path.read_text()] for path in TERMS}
    assert all(len(found) < 3 for found in listed.values()), f"docs/bank-format.md lists the codecs: {listed}"
    assert [path.name for path in (ROOT / "docs").glob("*.md") if "R rank" in path.read_text()] == []
