"""A method is added as docs/extending.md says: its file beside the others, and a line among the cases of a test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.tools.patience import completed

ROOT = Path(__file__).parents[3]
# In a process of its own, as the settings of evaluation and server know the methods from their import on.
ADDED = """
import sys
import regrad.methods
regrad.methods.__path__.append("tests/tools/more_methods")
import pytest
from tests.unit.serve_app import test_same_answers as cases
cases.METHODS.append({"name": "doubled"})
sys.exit(pytest.main([cases.__file__, "-q", "-p", "no:cacheprovider", "-k", "doubled or asked_in_both"]))
"""


@pytest.mark.slow
def test_a_module_beside_the_others_is_evaluated_and_served() -> None:
    run = completed([sys.executable, "-c", ADDED], 60, cwd=ROOT)
    assert run.returncode == 0, run.stdout
    assert "2 passed" in run.stdout
