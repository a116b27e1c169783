"""Encoded atoms of a remote bank on a local disk, one file each. A cache: it may be lost or damaged at any time."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)


class DiskTier:
    """As many bytes as allowed, the least recently used go first. Several processes may share a directory.

    Each counts what it has seen there, so together they may take more than allowed until one starts anew. The caller
    checks what it gets: nothing here knows what a record should be.
    """

    def __init__(self, directory: str, capacity_bytes: int) -> None:
        self._root, self._capacity = Path(directory), capacity_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock, self._failed = threading.Lock(), False
        found = sorted(self._scan(), key=lambda item: item[1])
        self._sizes.update((name, size) for name, _, size in found)
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
        """Keep a record. A disk that is full or read-only costs time, not answers: it is said once and passed over."""
        path = self._root / name
        temporary = path.with_name(f".{name}.{uuid.uuid4().hex}.tmp")
        try:
            self._root.mkdir(parents=True, exist_ok=True)
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

    def _scan(self) -> list[tuple[str, float, int]]:
        """Name, time of writing and bytes of what is there from earlier."""
        found = []
        for path in self._root.glob("*.atom"):
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((path.name, status.st_mtime, status.st_size))
        return found
