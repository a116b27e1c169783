"""One process at a time at a place: a lock that is free again when its holder is done, or was killed.

On a local file system it is the operating system's lock on a file beside the place, `<place>.lock`. An object store has
no such thing: there every holder has a file of its own in `<place>.lock/`, which it writes anew every few seconds, and
one that has not been written for a minute or so counts no more. Ages are differences of the store's own times. Of two
that begin at the same moment both may be refused, but never both be let in.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regrad.errors import RegradError, StorageError
from regrad.storage import Storage

logger = logging.getLogger(__name__)

_RENEW_SECONDS = 15.0
_LEASE_SECONDS = 90.0


@contextmanager
def exclusive(
    storage: Storage, busy: RegradError, renew: float = _RENEW_SECONDS, lease: float = _LEASE_SECONDS
) -> Iterator[None]:
    """Hold the place inside the block; raises `busy` if somebody else does, and `StorageError` as a store does."""
    with _flock(storage, busy) if storage.is_local else _lease(storage, busy, renew, lease):
        yield


@contextmanager
def _flock(storage: Storage, busy: RegradError) -> Iterator[None]:
    path = Path(f"{storage.root}.lock")
    lock = _opened(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_still_there(path, lock):  # its holder has just removed it: the next one makes another
            raise BlockingIOError
    except BlockingIOError:
        os.close(lock)
        raise busy from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _is_still_there(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(lock))
    except FileNotFoundError:
        return False


@contextmanager
def _lease(storage: Storage, busy: RegradError, renew: float, lease: float) -> Iterator[None]:
    place, mine = Storage(f"{storage.uri}.lock"), uuid.uuid4().hex
    place.write(mine, b"")
    try:
        files = place.files()
        now = files[mine][1] if mine in files else 0.0
        others = {name: now - written for name, (_, written) in files.items() if name != mine}
        if any(age < lease for age in others.values()):
            raise busy
        for name in others:  # of holders that were killed
            place.remove_file(name)
        with _renewed(place, mine, renew):
            yield
    finally:
        _give_back(place, mine)


def _give_back(place: Storage, name: str) -> None:
    """What cannot be removed now ends by itself."""
    try:
        place.remove_file(name)
    except StorageError as error:
        logger.warning("the lock at %s could not be given back: %s", place.uri, error)


@contextmanager
def _renewed(place: Storage, name: str, seconds: float) -> Iterator[None]:
    """Writes the file again and again in a thread; a store that refuses is tried again."""
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
