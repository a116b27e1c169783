"""What an import costs: a bank's processes need torch and no transformers."""

from __future__ import annotations

import sys

from tests.tools.patience import completed


def test_a_bank_is_read_and_written_without_transformers() -> None:
    code = (
        "import sys\n"
        "for name in ('reader', 'writer', 'maintenance'):\n"
        "    __import__(f'regrad.bank.{name}')\n"
        "    assert 'transformers' not in sys.modules, name\n"
    )
    done = completed([sys.executable, "-c", code], 60)
    assert done.returncode == 0, done.stderr
