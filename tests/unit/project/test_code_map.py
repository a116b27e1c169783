"""`benchmarks/code_map.py` counts what it says it counts, on a tree that is small enough to count by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tools.patience import completed

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "code_map.py"

ONE = '''"""A module."""

LIMIT = 3  # of nothing


# Why it is here.
def _once() -> int:
    return LIMIT  # type: ignore


def _twice() -> int:
    return 1


class Thing:
    """A thing."""

    def public(self) -> int:
        """Documented."""
        return _once() + _twice() + self._also_once()

    def _also_once(self) -> int:
        return _twice()
'''
TWO = """LIMIT = 4
callback = [_only_passed_on]


def _only_passed_on() -> None:
    pass


def bare() -> None:
    pass
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("tree")
    for name, text in {"regrad/deep/one.py": ONE, "serve_app/two.py": TWO, "tests/test_it.py": "1\n2\n"}.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(text)
    command = [sys.executable, str(SCRIPT), "--root", str(root), "--json", str(root / "map.json")]
    shown = completed(command, 60).stdout
    assert "files under 40 lines" in shown
    found: dict[str, Any] = json.loads((root / "map.json").read_text())
    return found


def test_lines_of_all_packages_and_of_the_tests(measured: dict[str, Any]) -> None:
    assert measured["files"] == 2
    assert measured["lines"] == len(ONE.splitlines()) + len(TWO.splitlines())
    assert measured["lines_by_package"] == {"regrad": 23, "ray_jobs": 0, "serve_app": 10}
    assert measured["test_lines"] == 2


def test_a_helper_counts_if_it_is_called_at_one_place_and_not_passed_on(measured: dict[str, Any]) -> None:
    assert measured["private_helpers_called_once"] == 2  # _once, _also_once


def test_comments_for_tools_and_docstrings_are_no_comments(measured: dict[str, Any]) -> None:
    assert measured["comment_lines"] == 2
    assert measured["comment_lines_per_100_code_lines"] == pytest.approx(100 * 2 / (10 + 6))


def test_docstrings_of_public_functions_and_names_defined_twice(measured: dict[str, Any]) -> None:
    assert measured["public_functions_with_docstring"] == 0.5  # Thing.public, bare
    assert measured["names"] == {"LIMIT": 2}


def test_functions_from_their_first_line_to_their_last(measured: dict[str, Any]) -> None:
    assert measured["functions"] == 6
    assert measured["lines_a_function"] == {"median": 2, "p90": 2.5, "max": 3}
