"""Shard files: one safetensors tensor `atoms` [n, record_bytes] uint8, so that an atom is one ranged read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor

from regrad.bank.rows import SHARDS, table
from regrad.errors import BankError, StorageError
from regrad.storage import Storage

FOLDER = "shards"
_ALIGNMENT = 64


@dataclass(frozen=True)
class ShardInfo:
    """One shard file: row i is the `record_bytes` bytes from `offset + i * record_bytes`."""

    shard: str
    rows: int
    offset: int
    bytes: int
    sha256: str


def shard_path(shard: str) -> str:
    """The path of a shard's file from the bank's root."""
    return f"{FOLDER}/{shard}"


def write_shard(storage: Storage, records: Tensor | Sequence[Tensor]) -> tuple[ShardInfo, list[int]]:
    """Write records [n, record_bytes] uint8 (n at least 1) as one shard; returns it and the CRC-32 of each record.

    Contiguous tensors of their own on the CPU are written as they are, without a copy that puts them together.
    """
    rows = [record.numpy() for record in (records.cpu().contiguous() if isinstance(records, Tensor) else records)]
    header = _header(len(rows), len(rows[0]))
    with ThreadPoolExecutor(1) as thread:
        crcs = thread.submit(lambda: [zlib.crc32(row.data) for row in rows])
        name, digest, size = storage.write_named(FOLDER, ".safetensors", header, *(row.data for row in rows))
    return ShardInfo(name.removeprefix(f"{FOLDER}/"), len(rows), len(header), size, digest), crcs.result()


def shard_table(infos: Sequence[ShardInfo]) -> pa.Table:
    """Shards as a shard list."""
    return table(SHARDS, {name: [getattr(info, name) for info in infos] for name in SHARDS.names})


def read_rows(storage: Storage, shard: str, offset: int, record_bytes: int, first: int, count: int) -> np.ndarray:
    """Records [count, record_bytes] uint8 of consecutive rows, unchecked; raises `BankError` if they are not there."""
    start = offset + first * record_bytes
    try:
        data = storage.read(shard_path(shard), start, start + count * record_bytes)
    except StorageError as error:
        if storage.exists(shard_path(shard)):
            raise
        raise BankError(f"the bank at {storage.uri} lacks shard {shard}; restore it, or build again") from error
    if len(data) != count * record_bytes:
        raise BankError(f"shard {shard} of the bank at {storage.uri} is truncated; restore it, or build again")
    return np.frombuffer(data, np.uint8).reshape(count, record_bytes)


def _header(rows: int, record_bytes: int) -> bytes:
    """What the safetensors library writes before one tensor, filled up with spaces so that records are aligned."""
    entry = {"dtype": "U8", "shape": [rows, record_bytes], "data_offsets": [0, rows * record_bytes]}
    text = json.dumps({"atoms": entry}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
