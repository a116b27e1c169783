"""The lock of a run whose place is in an object store."""

from __future__ import annotations

import time

import pytest

from regrad.errors import EvaluationError
from regrad.locking import exclusive
from regrad.storage import Storage

BUSY = EvaluationError("busy")


def test_one_run_at_a_time_and_a_killed_one_makes_way(s3: str) -> None:
    storage = Storage(f"{s3}/locked/out")
    place = Storage(f"{storage.uri}.lock")
    with exclusive(storage, BUSY):
        with pytest.raises(EvaluationError, match="busy"), exclusive(storage, BUSY):
            pytest.fail("nobody may be let in")
        assert len(place.list()) == 1
    assert place.list() == []
    place.write("killed", b"")
    with pytest.raises(EvaluationError, match="busy"), exclusive(storage, BUSY):
        pytest.fail("its minute is not over")
    time.sleep(3)  # S3's times are whole seconds
    with exclusive(storage, BUSY, lease=2):
        assert "killed" not in place.list()
    assert place.list() == []
