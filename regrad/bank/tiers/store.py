"""Atoms from where the bank is: ranged reads, tried again until a deadline, checked by their checksum."""

from __future__ import annotations

import random
import time
import zlib

from regrad.bank.catalog import Location
from regrad.bank.shards import shard_path
from regrad.errors import AtomDamaged, StorageError
from regrad.storage import Storage

_DAMAGED_TRIES = 2


class StoreTier:
    """One bank's shards on a file system or in an object store."""

    def __init__(self, storage: Storage, record_bytes: int, backoff_seconds: float) -> None:
        self._storage, self._record_bytes, self._backoff = storage, record_bytes, backoff_seconds

    def get(self, location: Location, deadline: float) -> bytes:
        """The bytes of a record, by `time.monotonic() == deadline` at the latest or nearly.

        Raises `AtomDamaged` if they are not what was written, also after another fetch, and `StorageError` if the store
        does not give them in time.
        """
        wait, damaged = self._backoff, 0
        while True:
            try:
                data = self._read(location)
            except StorageError as error:
                refused = isinstance(error.__cause__, PermissionError)
                if refused or time.monotonic() + wait > deadline or self._is_gone(location):
                    raise
                time.sleep(wait * random.uniform(0.5, 1.0))
                wait *= 2
                continue
            if self.is_whole(data, location):
                return data
            damaged += 1
            if damaged == _DAMAGED_TRIES:
                raise AtomDamaged(f"its bytes in shard {location.shard} are not what was written")

    def is_whole(self, data: bytes, location: Location) -> bool:
        """Whether these are the bytes that were written there."""
        return len(data) == self._record_bytes and zlib.crc32(data) == location.crc32

    def _is_gone(self, location: Location) -> bool:
        """Whether the store answers, and says that there is no such shard: then there is nothing to wait for."""
        try:
            return not self._storage.exists(shard_path(location.shard))
        except StorageError:
            return False

    def _read(self, location: Location) -> bytes:
        end = location.start + self._record_bytes
        return self._storage.read(shard_path(location.shard), location.start, end)
