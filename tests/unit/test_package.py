"""What `regrad` itself gives: the names of a notebook, imported when they are asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import regrad


def test_every_name_that_is_offered_is_there() -> None:
    assert set(dir(regrad)) == set(regrad.__all__)
    assert all(getattr(regrad, name) is not None for name in regrad.__all__)


def test_another_name_is_told_with_those_that_are_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Bank'; it has METHODS"):
        regrad.Bank  # noqa: B018


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, regrad; regrad.RegradError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
