"""Finding one passage among millions without loading an index: a hash table in a file, read where it is needed.

    header      <8sIIQQ>: "RGLOOKUP", 1, shards S, entries N, buckets M (a power of two)
    shards      S times 24 bytes: the first 16 bytes of the shard's digest, its offset and rows as <II
    directory   (M + 1) times <I: how many entries are before each bucket
    entries     N times 23 bytes, sorted: key, tag, crc32, shard, row

The key is the first 8 bytes of SHA-256 of the id, and its first bits are the bucket. The tag is the first 5 bytes of
the text hash: it tells whether an atom belongs to the words that somebody holds. crc32 is <I; shard and row have 3
bytes each, the low one first. Shard 0xffffff marks a deleted passage. All of it takes 23.2 bytes a passage.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from regrad.errors import BankError

_HEADER = struct.Struct("<8sIIQQ")
_SHARD = struct.Struct("<16sII")
_MAGIC = b"RGLOOKUP"
_ENTRY = np.dtype([("key", ">u8"), ("tag", "V5"), ("crc32", "<u4"), ("shard", "V3"), ("row", "V3")])
_DELETED = 0xFFFFFF
_BUCKET = 32
_KEY, _TAG = 8, 5
_SLICE = 1 << 16  # ids that are Python strings at a time: all of 10 million would take a gigabyte


@dataclass(frozen=True)
class Entry:
    """Where an atom is, or (`shard` None) that it was deleted."""

    tag: bytes
    crc32: int
    shard: int | None
    row: int

    def belongs_to(self, text_hash: str) -> bool:
        """Whether the atom was computed from the text with this hash (64 hex digits); yes if that is not known."""
        return self.tag in (bytes.fromhex(text_hash[: 2 * _TAG]), bytes(_TAG))


class Source(Protocol):
    """Bytes that can be read in part: a mapped file, or ranged reads of an object."""

    def read(self, start: int, end: int) -> bytes:
        """The bytes of [start, end)."""
        ...


def key_of(passage_id: str) -> bytes:
    """The 8 bytes under which a passage is found."""
    return hashlib.sha256(passage_id.encode()).digest()[:_KEY]


def encode_lookup(index: pa.Table, shards: pa.Table) -> bytes:
    """The look-up file of an index and its shard list.

    Raises `BankError` if two ids have the same key (for 10 million passages the odds are 1 to 370,000), or if there are
    more shards, or rows in one, than 3 bytes can count.
    """
    entries = _entries(index, shards)
    keys = entries["key"].astype(np.uint64)
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if len(twice):
        raise BankError(f"two passage ids have the same hash {int(keys[twice[0]]):016x}; give one of them another id")
    bits = max(0, (max(1, len(keys) // _BUCKET)).bit_length() - 1)
    buckets = keys >> np.uint64(64 - bits) if bits else np.zeros(len(keys), np.uint64)
    directory = np.searchsorted(buckets, np.arange((1 << bits) + 1, dtype=np.uint64)).astype("<u4")
    header = _HEADER.pack(_MAGIC, 1, len(shards), len(keys), 1 << bits)
    return b"".join([header, _shard_table(shards), directory.tobytes(), entries.tobytes()])


def _entries(index: pa.Table, shards: pa.Table) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(shards["shard"].to_pylist())}
    column = index["shard"].combine_chunks()
    dictionary = np.array([*(numbers.get(name, _DELETED) for name in column.dictionary.to_pylist()), _DELETED], "<u4")
    codes = column.indices.fill_null(len(dictionary) - 1).to_numpy(zero_copy_only=False)
    rows = index["row"].fill_null(0).to_numpy().astype("<u4")
    if len(numbers) >= _DELETED or (len(rows) and rows.max() > 0xFFFFFF):
        raise BankError(
            f"a part of a bank has at most {_DELETED} shards of 16777216 rows; use larger or smaller shards"
        )
    entries = np.empty(len(index), _ENTRY)
    entries["key"] = _keys(index["passage_id"])
    entries["tag"] = _tags(index["text_hash"])
    entries["crc32"] = index["crc32"].fill_null(0).to_numpy()
    entries["shard"], entries["row"] = _three_bytes(dictionary[codes]), _three_bytes(rows)
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
    return np.ascontiguousarray(data.reshape(-1, 32)[:, :_TAG]).view("V5").ravel()


def _three_bytes(numbers: np.ndarray) -> np.ndarray:
    low = np.ascontiguousarray(numbers.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3])
    return low.view("V3").ravel()


def _shard_table(shards: pa.Table) -> bytes:
    rows = zip(*(shards[name].to_pylist() for name in ("shard", "offset", "rows")), strict=True)
    return b"".join(_SHARD.pack(bytes.fromhex(name[:32]), offset, count) for name, offset, count in rows)


class Lookup:
    """One look-up file, opened by reading its header; a look-up reads 8 bytes and a bucket of about 32 entries.

    Raises `BankError` if the file is not one, or not as long as its header says.
    """

    def __init__(self, source: Source, size: int, name: str) -> None:
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

    def find(self, key: bytes) -> Entry | None:
        """What the part says of the passage with this key; None if nothing."""
        bucket = int.from_bytes(key, "big") >> self._shift
        at = self._directory + 4 * bucket
        first, last = struct.unpack("<II", self._exactly(at, at + 8))
        if not first <= last <= self._entries:
            raise self._damaged()
        width = _ENTRY.itemsize
        data = self._exactly(self._start + first * width, self._start + last * width)
        found = data.find(key)
        while found % width and found >= 0:
            found = data.find(key, found + 1)
        return _parse(data[found : found + width]) if found >= 0 else None

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
        return BankError(f"{self._name} is damaged; `regrad bank verify --repair` makes it anew from the index")


def _parse(data: bytes) -> Entry:
    crc32 = int.from_bytes(data[_KEY + _TAG : _KEY + _TAG + 4], "little")
    shard, row = int.from_bytes(data[-6:-3], "little"), int.from_bytes(data[-3:], "little")
    return Entry(data[_KEY : _KEY + _TAG], crc32, None if shard == _DELETED else shard, row)
