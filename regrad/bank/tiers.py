"""Where atoms are kept on their way: host memory, local disk, and the object store behind them."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from torch import Tensor

from regrad.bank.index import AtomLocation
from regrad.errors import AtomDamaged, StorageError
from regrad.storage import Storage

logger = logging.getLogger(__name__)

_DAMAGED_TRIES = 2


class Tier(StrEnum):
    """Where an atom came from: a tier of a bank, computed now because no bank has it, or nowhere."""

    MEMORY = "memory"
    DISK = "disk"
    STORE = "store"
    ONLINE = "online"
    MISSING = "missing"


class MemoryTier:
    """Safe for threads. Keys are places in shards, which never change, so versions of a bank can share one."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._bytes = 0
        self._records: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes of records kept now."""
        return self._bytes

    def get(self, key: Hashable) -> Tensor | None:
        """The record [record_bytes] uint8, or None."""
        with self._lock:
            record = self._records.get(key)
            if record is not None:
                self._records.move_to_end(key)
            return record

    def get_all(self, keys: Sequence[Hashable]) -> list[Tensor] | None:
        """The records of all keys in order, or None if one is not here."""
        found = []
        with self._lock:
            for key in keys:
                record = self._records.get(key)
                if record is None:
                    return None
                self._records.move_to_end(key)
                found.append(record)
        return found

    def put(self, key: Hashable, record: Tensor) -> None:
        """Keep a record, unless it is larger than the whole tier."""
        if record.numel() > self._capacity:
            return
        with self._lock:
            old = self._records.pop(key, None)
            self._records[key] = record
            self._bytes += record.numel() - (old.numel() if old is not None else 0)
            while self._bytes > self._capacity:
                self._bytes -= self._records.popitem(last=False)[1].numel()


class DiskTier:
    """Records as files, up to a number of bytes; the least recently used go first. Processes may share a directory.

    Each counts what it has seen there, so together they may exceed the limit until one of them starts again. The caller
    checks what it gets: nothing here knows what a record should be.
    """

    def __init__(self, directory: str, capacity_bytes: int) -> None:
        self._root = Path(directory)
        self._capacity = capacity_bytes
        self._lock = threading.Lock()
        self._failed = False
        # Records of earlier processes, the oldest first, so that they are also the first to go.
        found = []
        for path in self._root.glob("*.atom"):
            with suppress(OSError):  # another process has just removed it
                status = path.stat()
                found.append((status.st_mtime, path.name, status.st_size))
        self._sizes = OrderedDict((name, size) for _, name, size in sorted(found))
        self._bytes = sum(self._sizes.values())
        self._evict()

    def get(self, name: str) -> bytes | None:
        """The bytes of a record, or None."""
        try:
            data = (self._root / name).read_bytes()
        except OSError:
            return None
        with self._lock:
            if name in self._sizes:
                self._sizes.move_to_end(name)
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keep a record. A disk that is full or read-only costs time, not answers: it is logged once and ignored."""
        path = self._root / name
        temporary = path.with_name(f".{name}.{uuid.uuid4().hex}.tmp")
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            # Not by `Storage.write`, which waits for the disk: a record lost with the machine's power is fetched again.
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not self._failed:
                logger.warning("atoms cannot be kept in %s: %s", self._root, error.strerror)
            self._failed = True
            return
        with self._lock:
            self._bytes += len(data) - self._sizes.pop(name, 0)
            self._sizes[name] = len(data)
        self._evict()

    def drop(self, name: str) -> None:
        """Forget a record that turned out to be damaged."""
        with self._lock:
            self._bytes -= self._sizes.pop(name, 0)
        self._unlink(name)

    def _evict(self) -> None:
        while True:
            with self._lock:
                if self._bytes <= self._capacity or not self._sizes:
                    return
                name, size = self._sizes.popitem(last=False)
                self._bytes -= size
            self._unlink(name)

    def _unlink(self, name: str) -> None:
        try:
            (self._root / name).unlink(missing_ok=True)
        except OSError as error:
            logger.debug("cannot remove %s: %s", name, error)


class StoreTier:
    """One bank's shards on a file system or in an object store."""

    def __init__(self, storage: Storage, record_bytes: int, backoff_seconds: float) -> None:
        self._storage, self._record_bytes, self._backoff = storage, record_bytes, backoff_seconds

    def get(self, location: AtomLocation, deadline: float) -> bytes:
        """The bytes of a record, at about `time.monotonic() == deadline` at the latest.

        Raises `AtomDamaged` if two fetches give other bytes than were written, and `StorageError` if the store does not
        give them in time.
        """
        wait = self._backoff
        damaged = 0
        end = location.start + self._record_bytes
        while True:
            try:
                data = self._storage.read(location.path, location.start, end)
            except StorageError as error:
                refused = isinstance(error.__cause__, PermissionError)
                if refused or time.monotonic() + wait > deadline or self._is_gone(location):
                    raise
                # At random, or all readers of a store that was overloaded would come back at the same moment.
                time.sleep(wait * random.uniform(0.5, 1.0))
                wait *= 2
                continue
            if self.is_whole(data, location):
                return data
            damaged += 1
            if damaged == _DAMAGED_TRIES:
                raise AtomDamaged(f"its bytes in shard {location.shard} are not what was written", shard=location.shard)

    def is_whole(self, data: bytes, location: AtomLocation) -> bool:
        """Whether these are the bytes that were written there."""
        return len(data) == self._record_bytes and zlib.crc32(data) == location.crc32

    def _is_gone(self, location: AtomLocation) -> bool:
        """Whether the store answers, and says that there is no such shard: then there is nothing to wait for."""
        try:
            return not self._storage.exists(location.path)
        except StorageError:
            return False
