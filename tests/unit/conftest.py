"""Fixtures of several unit tests."""

from __future__ import annotations

import pytest

from serve_app import observability
from tests.tools.recording import Recorded


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    monkeypatch.setattr(observability, "_make", recorded.make)
    return recorded
