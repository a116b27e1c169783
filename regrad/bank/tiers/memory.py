"""Encoded atoms in this process's memory: as many bytes as allowed, the least recently used go first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from torch import Tensor


class MemoryTier:
    """Safe for threads. Keys are places in shards, which never change, so versions of a bank can share one."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity, self._bytes = capacity_bytes, 0
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
        """Keep a record; what is larger than the whole tier is not kept."""
        if record.numel() > self._capacity:
            return
        with self._lock:
            old = self._records.pop(key, None)
            self._records[key] = record
            self._bytes += record.numel() - (old.numel() if old is not None else 0)
            while self._bytes > self._capacity:
                self._bytes -= self._records.popitem(last=False)[1].numel()
