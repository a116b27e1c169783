"""One process at a time at a place: a lock that is free again when its holder is done, or was killed.

On a local file system it is the operating system's lock on a file beside the place, `<place>.lock`; a file that is left
there locks nothing. An object store has no locks: there every holder has its own file in `<place>.lock/`, a lease,
which it rewrites every few seconds; a lease that was not renewed for a minute and a half has expired. Ages are
differences of the store's own times. Of two that begin at the same moment both may be refused, but both never succeed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from regrad.errors import RegradError, StorageError
from regrad.storage import Storage

logger = logging.getLogger(__name__)

_RENEW_SECONDS = 15.0
_LEASE_SECONDS = 90.0


class _Held(Exception):
    """Another process holds the place; the text says which."""


@contextmanager
def exclusive(
    storage: Storage,
    busy: Callable[[str], RegradError],
    wait: float = 0.0,
    renew: float = _RENEW_SECONDS,
    lease: float = _LEASE_SECONDS,
) -> Iterator[None]:
    """Hold the place (a directory or a file) inside the block.

    If another process still holds it after `wait` seconds, raises what `busy` returns for a description of that
    process. Raises `StorageError` as a store does.
    """
    give_up = time.monotonic() + wait
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(_flock(storage) if storage.is_local else _lease(storage, renew, lease))
                break
            except _Held as error:
                if time.monotonic() >= give_up:
                    raise busy(str(error)) from None
            # At random: two that refuse each other's leases would do so for ever if they came back together.
            time.sleep(random.uniform(0.02, 0.2))
        yield


@contextmanager
def _flock(storage: Storage) -> Iterator[None]:
    path = Path(f"{storage.root}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", code="refused", uri=str(path)) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _Held(os.pread(lock, 200, 0).decode(errors="replace") or "another process") from None
        # Between opening the file and locking it, its holder may have removed it. The lock is then on a file that no
        # other process will find: give up, and the next try makes a new one.
        if not _is_still_there(path, lock):
            raise _Held("another process")
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _is_still_there(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(lock))
    except FileNotFoundError:
        return False


@contextmanager
def _lease(storage: Storage, renew: float, lease: float) -> Iterator[None]:
    place = Storage(f"{storage.uri}.lock")
    mine = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"  # a lease's name says whose it is
    # Written before looking: of two that come together, each sees the other's lease, and none takes the place unseen.
    place.write(mine, b"")
    try:
        files = place.files()
        now = files[mine][1] if mine in files else 0.0
        others = {name: now - written for name, (_, written) in files.items() if name and name != mine}
        for name, age in others.items():
            if age < lease:
                host, _, pid = name.rpartition("-")[0].rpartition("-")
                expires = f"if it was killed, its lock expires in {lease - age:.0f} seconds"
                raise _Held(f"process {pid} on {host}; {expires}")
        for name in others:  # of holders that were killed
            place.remove_file(name)
        with _renewed(place, mine, renew):
            yield
    finally:
        try:
            place.remove_file(mine)
        except StorageError as error:  # it expires by itself
            logger.warning("the lock at %s could not be released: %s", place.uri, error)


@contextmanager
def _renewed(place: Storage, name: str, seconds: float) -> Iterator[None]:
    """Rewrites the lease every `seconds` in a thread; a store that refuses is tried again."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(seconds):
            try:
                place.write(name, b"")
            except StorageError as error:
                logger.warning("the lock at %s could not be renewed: %s", place.uri, error)

    thread = threading.Thread(target=renew, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
