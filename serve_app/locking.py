"""One at a time: a lock file beside what is read, changed and written again."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from regrad.errors import StorageError
from regrad.storage import Storage

_WAIT_SECONDS = 10.0
_PAUSE_SECONDS = 0.05


@contextmanager
def locked(storage: Storage, name: str, seconds: float = _WAIT_SECONDS) -> Iterator[None]:
    """Hold `<name>.lock` inside the block. Raises `StorageError` if somebody else still does after some seconds."""
    lock, mine = f"{name}.lock", uuid.uuid4().hex.encode()
    give_up = time.monotonic() + seconds
    while not storage.create(lock, mine):
        if time.monotonic() > give_up:
            path = storage.path(lock)
            raise StorageError(f"somebody else is changing {name}; if nobody is, a command was killed: remove {path}")
        time.sleep(_PAUSE_SECONDS)
    try:
        yield
    finally:
        storage.remove_file(lock)
