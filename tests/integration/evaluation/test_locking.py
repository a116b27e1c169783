"""The lock of a run whose place is in an object store."""

from __future__ import annotations

import time

import pytest

from regrad.errors import EvaluationError
from regrad.locking import exclusive
from regrad.storage import Storage

BUSY = EvaluationError  # of which the text is who holds the lock


def test_one_run_at_a_time_and_a_killed_one_makes_way(s3: str) -> None:
    storage = Storage(f"{s3}/locked/out")
    place = Storage(f"{storage.uri}.lock")
    with exclusive(storage, BUSY):
        with pytest.raises(EvaluationError, match="process"), exclusive(storage, BUSY):
            pytest.fail("nobody may be let in")
        assert len(place.list()) == 1
    assert place.list() == []
    place.write("far-away-7-0f", b"")
    with pytest.raises(EvaluationError, match="process"), exclusive(storage, BUSY):
        pytest.fail("its minute is not over")
    time.sleep(3)  # S3's times are whole seconds
    with exclusive(storage, BUSY, lease=2):
        assert "far-away-7-0f" not in place.list()
    assert place.list() == []


def test_an_object_of_the_name_of_the_lock_locks_nothing(s3: str) -> None:
    place = Storage(f"{s3}/left/out")
    Storage(f"{s3}/left").write("out.lock", b"0123456789abcdef")
    with exclusive(place, BUSY), pytest.raises(EvaluationError, match="process"), exclusive(place, BUSY):
        pytest.fail("nobody may be let in")
    with exclusive(place, BUSY, wait=10):
        pass
