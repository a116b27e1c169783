"""Finding an atom by its passage's id: the look-up table of a part, and all parts of a version together.

A look-up file has a header, a table of shards, a directory of hash buckets and the entries sorted by hash. Hashes are
evenly spread, so the first bits of one lead to its bucket, and a look-up reads 8 bytes and 32 to 64 entries, however
many passages there are: a bank of 10 million opens at once, and a remote one is searched without a download.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from regrad.bank.format import SHARD_FOLDER, File, Part
from regrad.errors import BankError, StorageError
from regrad.storage import Storage

_HEADER = struct.Struct("<8sIIQQ")
_SHARD = struct.Struct("<16sII")
_MAGIC = b"RGLOOKUP"
_ENTRY = np.dtype([("key", ">u8"), ("tag", "V5"), ("crc32", "<u4"), ("shard", "V3"), ("row", "V3")])
_DELETED = 0xFFFFFF
_BUCKET = 32
_KEY_BYTES = 8
_TAG_BYTES = 5
_SLICE = 1 << 16  # ids that are Python strings at a time: all of 10 million would take a gigabyte


@dataclass(frozen=True)
class IndexEntry:
    """Where an atom is, or (`shard` None) that it was deleted."""

    tag: bytes
    crc32: int
    shard: int | None
    row: int

    def belongs_to(self, text_hash: str) -> bool:
        """Whether the atom was computed from the text with this hash (64 hex digits); true if that is not known."""
        return self.tag in (bytes.fromhex(text_hash[: 2 * _TAG_BYTES]), bytes(_TAG_BYTES))


class ByteSource(Protocol):
    """Bytes that can be read in part: a mapped file, or ranged reads of an object."""

    def read(self, start: int, end: int) -> bytes:
        """The bytes of [start, end)."""
        ...


def key_of(passage_id: str) -> bytes:
    """The 8 bytes under which a passage is found."""
    return hashlib.sha256(passage_id.encode()).digest()[:_KEY_BYTES]


def encode_lookup(index: pa.Table, shards: pa.Table) -> bytes:
    """The look-up file of an index and its shard list.

    Raises `BankError` if two ids have the same key (for 10 million passages the odds are 1 in 370,000), or if there are
    more shards, or rows in one, than 3 bytes can count.
    """
    entries = _entries(index, shards)
    keys = entries["key"].astype(np.uint64)
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if len(twice):
        key = f"{int(keys[twice[0]]):016x}"
        raise BankError(
            f"two passage ids have the same hash {key}; give one of them another id", code="hash_collision", key=key
        )
    # The largest power of two with at least 32 entries a bucket on average; the first bits of a key are its bucket.
    bits = max(0, (max(1, len(keys) // _BUCKET)).bit_length() - 1)
    buckets = keys >> np.uint64(64 - bits) if bits else np.zeros(len(keys), np.uint64)
    directory = np.searchsorted(buckets, np.arange((1 << bits) + 1, dtype=np.uint64)).astype("<u4")
    header = _HEADER.pack(_MAGIC, 1, len(shards), len(keys), 1 << bits)
    rows = zip(*(shards[name].to_pylist() for name in ("shard", "offset", "rows")), strict=True)
    shard_table = [_SHARD.pack(bytes.fromhex(name[:32]), offset, count) for name, offset, count in rows]
    return b"".join([header, *shard_table, directory.tobytes(), entries.tobytes()])


def _entries(index: pa.Table, shards: pa.Table) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(shards["shard"].to_pylist())}
    column = index["shard"].combine_chunks()
    dictionary = np.array([*(numbers.get(name, _DELETED) for name in column.dictionary.to_pylist()), _DELETED], "<u4")
    codes = column.indices.fill_null(len(dictionary) - 1).to_numpy(zero_copy_only=False)
    rows = index["row"].fill_null(0).to_numpy().astype("<u4")
    if len(numbers) >= _DELETED or (len(rows) and rows.max() > 0xFFFFFF):
        raise BankError(
            f"a part of a bank has at most {_DELETED} shards of 16777216 rows; use larger or smaller shards",
            code="too_many_rows",
            shards=len(numbers),
        )
    entries = np.empty(len(index), _ENTRY)
    entries["key"] = _keys(index["passage_id"])
    entries["tag"] = _tags(index["text_hash"])
    entries["crc32"] = index["crc32"].fill_null(0).to_numpy()
    entries["shard"] = _three_bytes(dictionary[codes])
    entries["row"] = _three_bytes(rows)
    return entries[np.argsort(entries["key"], kind="stable")]


def _keys(ids: pa.ChunkedArray) -> np.ndarray:
    keys = np.empty(len(ids), ">u8")
    for start in range(0, len(ids), _SLICE):
        some = ids.slice(start, _SLICE).to_pylist()
        keys[start : start + len(some)] = np.frombuffer(b"".join(map(key_of, some)), ">u8")
    return keys


def _tags(hashes: pa.ChunkedArray) -> np.ndarray:
    filled = hashes.fill_null(bytes(32)).combine_chunks()
    data = np.frombuffer(filled.buffers()[1], np.uint8)[filled.offset * 32 :][: len(filled) * 32]
    return np.ascontiguousarray(data.reshape(-1, 32)[:, :_TAG_BYTES]).view("V5").ravel()


def _three_bytes(numbers: np.ndarray) -> np.ndarray:
    low = np.ascontiguousarray(numbers.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3])
    return low.view("V3").ravel()


class Lookup:
    """One look-up file, opened by reading its header; a look-up reads 8 bytes and a bucket of 32 to 64 entries.

    Raises `BankError` if the file is not one, or not as long as its header says.
    """

    def __init__(self, source: ByteSource, size: int, name: str) -> None:
        self._source, self._name = source, name
        header = source.read(0, _HEADER.size)
        if len(header) != _HEADER.size:
            raise self._damaged()
        magic, version, self._shards, self._entries, self._buckets = _HEADER.unpack(header)
        self._directory = _HEADER.size + self._shards * _SHARD.size
        self._start = self._directory + 4 * (self._buckets + 1)
        good = magic == _MAGIC and version == 1 and self._buckets and not self._buckets & (self._buckets - 1)
        if not good or size != self._start + self._entries * _ENTRY.itemsize:
            raise self._damaged()
        self._shift = 64 - (self._buckets.bit_length() - 1)

    def find(self, key: bytes) -> IndexEntry | None:
        """What the part says of the passage with this key; None if nothing."""
        bucket = int.from_bytes(key, "big") >> self._shift
        at = self._directory + 4 * bucket
        first, last = struct.unpack("<II", self._exactly(at, at + 8))
        if not first <= last <= self._entries:
            raise self._damaged()
        width = _ENTRY.itemsize
        data = self._exactly(self._start + first * width, self._start + last * width)
        # A search in the raw bytes is faster than parsing them; a hit across two entries is by chance and no entry.
        found = data.find(key)
        while found % width and found >= 0:
            found = data.find(key, found + 1)
        if found < 0:
            return None
        entry = data[found : found + width]
        shard = int.from_bytes(entry[-6:-3], "little")
        return IndexEntry(
            tag=entry[_KEY_BYTES : _KEY_BYTES + _TAG_BYTES],
            crc32=int.from_bytes(entry[_KEY_BYTES + _TAG_BYTES : -6], "little"),
            shard=None if shard == _DELETED else shard,
            row=int.from_bytes(entry[-3:], "little"),
        )

    def shard(self, number: int) -> tuple[str, int, int]:
        """File name, offset of the first record, and rows of a shard."""
        if number >= self._shards:
            raise self._damaged()
        at = _HEADER.size + number * _SHARD.size
        digest, offset, rows = _SHARD.unpack(self._exactly(at, at + _SHARD.size))
        return f"{digest.hex()}.safetensors", offset, rows

    def _exactly(self, start: int, end: int) -> bytes:
        data = self._source.read(start, end)
        if len(data) != end - start:
            raise self._damaged()
        return data

    def _damaged(self) -> BankError:
        return BankError(
            f"{self._name} is damaged; `regrad bank verify --repair` makes it again from the index",
            code="lookup_damaged",
            file=self._name,
        )


_BLOCK = 64 * 1024
_CACHED_BLOCKS = 512


class AtomLocation(NamedTuple):
    """One atom: its shard file, the position of its first byte there, the checksum of its bytes, its entry."""

    shard: str
    start: int
    crc32: int
    entry: IndexEntry

    @property
    def path(self) -> str:
        """Where the shard's file is, from the bank's root."""
        return f"{SHARD_FOLDER}/{self.shard}"


class Catalog:
    """Opening reads nothing but the headers of the look-up files; each is mapped, or read in blocks if it is remote.

    Remote blocks take at most 32 MiB of memory. Raises `BankError` for a look-up file that is missing or damaged.
    """

    def __init__(self, storage: Storage, parts: Sequence[Part], record_bytes: int) -> None:
        self._record_bytes = record_bytes
        self._storage = storage
        self._blocks = _Blocks(storage)
        self._mapped: list[_Mapped] = []
        self._lookups = [self._open(part.lookup) for part in reversed(parts)]  # the newest first: it overrides

    def find(self, passage_id: str) -> AtomLocation | None:
        """Where the passage's atom is, or None if it has none."""
        key = key_of(passage_id)
        for lookup in self._lookups:
            entry = lookup.find(key)
            if entry is not None:
                if entry.shard is None:
                    return None
                shard, offset, _ = lookup.shard(entry.shard)
                return AtomLocation(shard, offset + entry.row * self._record_bytes, entry.crc32, entry)
        return None

    def close(self) -> None:
        """Unmap the files; afterwards nothing can be found."""
        for mapped in self._mapped:
            mapped.close()

    def _open(self, file: File) -> Lookup:
        where = f"{self._storage.uri}/{file.name}"
        try:
            return Lookup(self._source(file), file.bytes, where)
        except (FileNotFoundError, ValueError) as error:
            raise BankError(
                f"{where} is missing or damaged; `regrad bank verify --repair` makes it again",
                code="lookup_damaged",
                file=where,
            ) from error
        except OSError as error:
            raise StorageError(f"cannot read {where}: {error.strerror}", code="refused", uri=where) from error

    def _source(self, file: File) -> ByteSource:
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
