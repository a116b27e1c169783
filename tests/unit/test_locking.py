"""One at a time at a place, on a local file system and in a store without locks, also after a holder was killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from regrad.errors import EvaluationError, StorageError
from regrad.locking import exclusive
from regrad.storage import Storage
from tests.tools.patience import Deadline
from tests.tools.refusals import refused


def busy(holder: str) -> EvaluationError:
    return EvaluationError("busy", code="busy", holder=holder)


ME = f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def held_here() -> Iterator[None]:
    with pytest.raises(EvaluationError) as found:
        yield
    assert str(found.value.fields["holder"]).startswith(ME)


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "place") if request.param == "file" else f"memory://{uuid.uuid4().hex}/place")


def remote() -> Storage:
    return Storage(f"memory://{uuid.uuid4().hex}/place")


def leases(storage: Storage) -> list[str]:
    return Storage(f"{storage.uri}.lock").list()


def test_the_second_is_refused_until_the_first_is_done(storage: Storage) -> None:
    for _ in range(2):
        with exclusive(storage, busy):
            for _ in range(2):
                with held_here(), exclusive(storage, busy):
                    pytest.fail("the place is held")
    assert not leases(storage) and not storage.exists("")


def test_it_is_free_after_an_error(storage: Storage) -> None:
    with pytest.raises(KeyError), exclusive(storage, busy):
        raise KeyError
    with exclusive(storage, busy):
        pass


@pytest.mark.slow
def test_who_waits_long_enough_is_let_in(storage: Storage) -> None:
    held, order = threading.Event(), []

    def first() -> None:
        with exclusive(storage, busy):
            held.set()
            time.sleep(0.5)
            order.append("first")

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(first)
        assert held.wait(30)
        with held_here(), exclusive(storage, busy, wait=0.05):
            pytest.fail("the place is held")
        with exclusive(storage, busy, wait=60):
            order.append("second")
        done.result()
    assert order == ["first", "second"]


def test_many_that_wait_are_let_in_one_by_one(storage: Storage) -> None:
    inside: list[int] = []

    def enter(number: int) -> None:
        with exclusive(storage, busy, wait=60):
            inside.append(number)
            time.sleep(0.005)
            assert inside == [number]
            inside.remove(number)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(enter, range(12)))


def test_a_file_that_was_left_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / "place.lock").write_text("0123456789abcdef0123456789abcdef")
    here = refused(EvaluationError, "busy", holder=ME)
    with exclusive(Storage(tmp_path / "place"), busy), here, exclusive(Storage(tmp_path / "place"), busy):
        pytest.fail("the place is held")
    assert not (tmp_path / "place.lock").exists()


def test_other_places_are_not_locked(storage: Storage) -> None:
    with exclusive(storage, busy), exclusive(Storage(f"{storage.uri}-2"), busy):
        pass


def test_a_killed_process_holds_no_lock_on_a_local_disk(tmp_path: Path) -> None:
    code = (
        "import sys, time; from regrad.locking import exclusive; from regrad.storage import Storage\n"
        "with exclusive(Storage(sys.argv[1]), RuntimeError):\n    print('held', flush=True); time.sleep(600)"
    )
    place = tmp_path / "place"
    with subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            killed_later = refused(EvaluationError, "busy", holder=f"process {process.pid} on {socket.gethostname()}")
            with killed_later, exclusive(Storage(place), busy):
                pytest.fail("the place is held")
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert (tmp_path / "place.lock").exists()
    with exclusive(Storage(place), busy):
        pass


def test_a_lease_that_is_not_renewed_ends() -> None:
    storage = remote()
    dead = Storage(f"{storage.uri}.lock")
    dead.write("far-away-7-0f", b"")
    with refused(EvaluationError, "busy") as found, exclusive(storage, busy):
        pytest.fail("the place is held")
    assert re.match(r"process 7 on far-away; .* expires in \d+ seconds", str(found.value.fields["holder"]))
    MemoryFileSystem.store[dead.path("far-away-7-0f")].created -= timedelta(minutes=2)
    with exclusive(storage, busy):
        assert "far-away-7-0f" not in leases(storage) and len(leases(storage)) == 1


def test_a_lease_is_renewed_while_it_is_held() -> None:
    storage = remote()
    with exclusive(storage, busy, renew=0.01):
        place = Storage(f"{storage.uri}.lock")
        first, deadline = place.files(), Deadline(30)
        while place.files() == first and not deadline.over:
            time.sleep(0.01)
        assert place.files().keys() == first.keys() and place.files() != first


def test_where_nothing_can_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        refused(StorageError, "refused", uri=f"{tmp_path}/file/place.lock"),
        exclusive(Storage(tmp_path / "file" / "place"), busy),
    ):
        pytest.fail("the place is held")
