"""What the documents say of errors: every code exists, and every sentence is one that the code still says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.unit.test_errors import codes

ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("regrad", "ray_jobs", "serve_app")
CODED = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+)`")
QUOTED = re.compile(r"`` (.+?) ``|`([^`]+)`")


@cache
def known_codes() -> frozenset[str]:
    """Every area, and every code that the source gives."""
    return frozenset(codes())


@cache
def other_names() -> frozenset[str]:
    """Last parts of dotted names that are no codes: fields of classes (settings among them), files, modules."""
    fields = {
        node.target.id
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    modules = {part for path, _ in trees() for part in path.with_suffix("").parts}
    return frozenset(fields | modules | {"py", "md", "yaml", "json", "jsonl"})


@cache
def trees() -> tuple[tuple[Path, ast.Module], ...]:
    """Every source file, relative to the project, with what is in it."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple((path.relative_to(ROOT), ast.parse(path.read_text())) for path in paths)


def messages() -> list[tuple[list[str], list[str]]]:
    """(codes, sentences) of each row of the table of messages."""
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text[text.index("\n## Messages") : text.index("\nHTTP errors have")]
    cells = [row.strip("|").split(" | ") for row in section.splitlines() if row.startswith("| ")][1:]
    return [
        (CODED.findall(first), [wide or narrow for wide, narrow in QUOTED.findall(second)])
        for first, second, _ in cells
    ]


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_code_in_a_document_exists(document: Path) -> None:
    areas = {code.split(".")[0] for code in known_codes()}
    named = {name for name in CODED.findall(document.read_text()) if name.split(".")[0] in areas}
    others = {name for name in named if name.split(".")[-1] in other_names()}
    assert named - others <= known_codes()


def test_the_table_of_messages_names_codes_that_exist() -> None:
    rows = messages()
    assert len(rows) > 50
    assert {code for row_codes, _ in rows for code in row_codes} <= known_codes()


def test_the_code_says_every_sentence_of_the_table_of_messages() -> None:
    sources = list(texts())
    sentences = [sentence for _, row in messages() for sentence in row]
    stale = [sentence for sentence in sentences if not any(says(source, sentence) for source in sources)]
    assert not stale


def says(source: str, sentence: str) -> bool:
    """Whether the fixed words of a sentence, `...` left out, stand in a text in this order."""
    place = 0
    for words in sentence.split("..."):
        place = source.find(words, place)
        if place < 0:
            return False
        place += len(words)
    return True


def texts() -> Iterator[str]:
    """Every string of the source but the docstrings, with a mark for each value that is filled in."""
    for _, tree in trees():
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield node.value
