"""The `regrad` command in this process, where nothing is imported anew: torch, transformers and Ray take 10 s."""

from __future__ import annotations

import sys

import pytest

from regrad.cli.main import main


def status_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of `regrad ARGUMENTS`; what it prints is for the test's `capsys`."""
    monkeypatch.setattr(sys, "argv", ["regrad", *arguments])
    try:
        main()
    except SystemExit as ended:
        return int(str(ended.code))
    return 0
