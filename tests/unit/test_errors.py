"""Errors: their codes are frozen, their text is free."""

from __future__ import annotations

import ast
import copy
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from regrad.errors import BankConflict, BankError, FingerprintMismatch, RegradError

FILE = Path(__file__).with_name("error_codes.txt")
ROOT = Path(__file__).parents[2]
COMMAND = "python tests/unit/test_errors.py --write"


def test_the_codes_are_those_that_were_agreed() -> None:
    diff = "\n".join(difflib.unified_diff(FILE.read_text().splitlines(), codes(), "agreed", "found", lineterm="", n=0))
    if diff:
        pytest.fail(f"codes of errors have changed; if they should: {COMMAND}\n{diff}", pytrace=False)


def test_a_code_is_the_class_and_the_part_that_the_raiser_gives() -> None:
    assert BankError("no bank").code == "bank"
    error = BankError("no bank at s3://b", code="not_found", uri="s3://b")
    assert (error.code, error.fields, str(error)) == ("bank.not_found", {"uri": "s3://b"}, "no bank at s3://b")


@pytest.mark.parametrize(
    "error",
    [BankError("no bank", code="not_found", uri="s3://b"), FingerprintMismatch("a", "b"), BankConflict("s3://b", 7)],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_code_and_fields_when_it_is_pickled(error: RegradError) -> None:
    found = copy.copy(error)  # by the same protocol as pickle, which is not allowed to read here
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


def codes() -> list[str]:
    """Every area of a class, and every `code=` with the class that it is given to, as the source has them."""
    found = set()
    for package in ("regrad", "ray_jobs", "serve_app", "studies"):
        for path in (ROOT / package).rglob("*.py"):
            found |= set(_codes(ast.parse(path.read_text())))
    return sorted(found)


def _codes(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "area":
                    yield f"{node.name} {ast.literal_eval(line.value)}"
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                    yield f"{ast.unparse(node.func)} .{keyword.value.value}"


if __name__ == "__main__" and "--write" in sys.argv:
    FILE.write_text("\n".join(codes()) + "\n")
