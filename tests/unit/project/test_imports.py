"""What an import costs: a bank's processes need torch and no transformers."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["regrad.bank.reader", "regrad.bank.writer", "regrad.bank.maintenance"])
def test_a_bank_is_read_and_written_without_transformers(module: str) -> None:
    code = f"import sys, {module}; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
