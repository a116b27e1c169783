"""Where each passage's atom is: the look-up files of a version's parts, asked from the newest to the oldest."""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from regrad.bank.lookup import Entry, Lookup, Source, key_of
from regrad.bank.manifest import File, Part
from regrad.errors import BankError, StorageError
from regrad.storage import Storage

_BLOCK = 64 * 1024
_CACHED_BLOCKS = 512


class Location(NamedTuple):
    """One atom: its shard file, the position of its first byte there, and the checksum of its bytes."""

    shard: str
    start: int
    crc32: int
    entry: Entry


class Catalog:
    """Opening reads nothing but the headers of the look-up files; each is mapped, or read in blocks if it is remote.

    Remote blocks take at most 32 MiB of memory. Raises `BankError` for a look-up file that is missing or damaged.
    """

    def __init__(self, storage: Storage, parts: Sequence[Part], record_bytes: int) -> None:
        self._record_bytes = record_bytes
        self._storage, self._blocks, self._mapped = storage, _Blocks(storage), list[_Mapped]()
        self._lookups = [self._open(part.lookup) for part in reversed(parts)]

    def find(self, passage_id: str) -> Location | None:
        """Where the passage's atom is, or None if it has none."""
        key = key_of(passage_id)
        for lookup in self._lookups:
            entry = lookup.find(key)
            if entry is not None:
                return None if entry.shard is None else self._locate(lookup, entry, entry.shard)
        return None

    def close(self) -> None:
        """Unmap the files; nothing can be found any more."""
        for mapped in self._mapped:
            mapped.close()

    def _locate(self, lookup: Lookup, entry: Entry, number: int) -> Location:
        shard, offset, _ = lookup.shard(number)
        return Location(shard, offset + entry.row * self._record_bytes, entry.crc32, entry)

    def _open(self, file: File) -> Lookup:
        where = f"{self._storage.uri}/{file.name}"
        try:
            return Lookup(self._source(file), file.bytes, where)
        except (FileNotFoundError, ValueError) as error:
            raise BankError(f"{where} is missing or damaged; `regrad bank verify --repair` makes it anew") from error
        except OSError as error:
            raise StorageError(f"cannot read {where}: {error.strerror}") from error

    def _source(self, file: File) -> Source:
        if not self._storage.is_local:
            return _Remote(self._blocks, file)
        self._mapped.append(_Mapped(self._storage.path(file.name), file.bytes))
        return self._mapped[-1]


class _Mapped:
    def __init__(self, path: str, size: int) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._map) != size:
            raise ValueError(f"{size} bytes are expected, found {len(self._map)}")

    def read(self, start: int, end: int) -> bytes:
        return self._map[start:end]

    def close(self) -> None:
        self._map.close()


class _Blocks:
    """Blocks of remote files, the last used ones kept. Two threads may fetch the same block; both are right."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, block: int) -> bytes:
        with self._lock:
            if (name, block) in self._kept:
                self._kept.move_to_end((name, block))
                return self._kept[name, block]
        data = self._storage.read(name, block * _BLOCK, (block + 1) * _BLOCK)
        with self._lock:
            self._kept[name, block] = data
            if len(self._kept) > _CACHED_BLOCKS:
                self._kept.popitem(last=False)
        return data


class _Remote:
    def __init__(self, blocks: _Blocks, file: File) -> None:
        self._blocks, self._file = blocks, file

    def read(self, start: int, end: int) -> bytes:
        end = min(end, self._file.bytes)
        numbers = range(start // _BLOCK, -(-end // _BLOCK))
        data = b"".join(self._blocks.get(self._file.name, number) for number in numbers)
        first = numbers.start * _BLOCK
        return data[start - first : end - first]
