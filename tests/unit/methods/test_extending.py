"""Methods are added as docs/extending.md says: their files beside the others, and lines among the cases of a test."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.tools.patience import completed

ROOT = Path(__file__).parents[3]
NAMES = ("doubled", "doubled+icl", "halved", "halved+icl")
# In a process of its own, as the settings of evaluation and server know the methods from their import on. The tests of
# the table and of the baselines read it as well, so they have to pass with any method that is added.
ADDED = """
import sys
import regrad.methods
regrad.methods.__path__.append("tests/tools/more_methods")
import pytest
from tests.unit.methods import test_methods
from tests.unit.serve_app import test_same_answers as cases
from tests.unit.training import test_baselines
cases.METHODS += [{"name": "doubled"}, {"name": "doubled+icl"}]
cases.METHODS += [{"name": name, "adapter": "FOLDER/lora"} for name in ("halved", "halved+icl")]
files = [module.__file__ for module in (cases, test_methods, test_baselines)]
chosen = "doubled or halved or asked_in_both or test_methods or test_baselines"
sys.exit(pytest.main([*files, "-v", "-p", "no:cacheprovider", "-k", chosen]))
"""


@pytest.mark.slow
def test_modules_beside_the_others_are_evaluated_and_served() -> None:
    run = completed([sys.executable, "-c", ADDED], 120, cwd=ROOT)
    assert run.returncode == 0, run.stdout
    passed = re.findall(r"::(\S+) PASSED", run.stdout)
    assert {f"test_a_method_gives_the_same_in_an_evaluation_and_in_a_server[{name}]" for name in NAMES} <= {*passed}
    assert {"test_every_method_is_asked_in_both", "test_which_methods_retrieve_and_which_apply_gradients"} <= {*passed}
    assert "test_every_documented_command_reads_what_is_there_and_writes_where_nothing_is" in passed
