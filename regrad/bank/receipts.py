"""What an unfinished build has done: one file for each block of passages, under `builds/`.

A receipt is written after the block's shard and is named by what went in, so whoever runs the same build again finds it
and does not compute the block a second time. Receipts are removed after the commit, or by `gc` when they are abandoned.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from regrad.bank.rows import SHARDS
from regrad.bank.shards import shard_path
from regrad.corpus import Passage
from regrad.errors import StorageError
from regrad.storage import Storage

FOLDER = "builds"
RESULT = pa.schema(
    [
        pa.field("passage_id", pa.string()),
        pa.field("text_hash", pa.binary(32)),
        pa.field("shard", pa.string()),
        pa.field("row", pa.uint32()),
        pa.field("crc32", pa.uint32()),
        pa.field("reason", pa.string()),
        *(pa.field(f"shard_{field.name}", field.type) for field in SHARDS if field.name != "shard"),
    ]
)
"""What became of each passage of a block: where its atom is, or why it has none. Row 0 of a shard describes it."""


def receipt_name(settings: Mapping[str, Any], passages: Sequence[Passage]) -> str:
    """The file of the block of these passages in a build with these settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for passage in passages:
        digest.update(hashlib.sha256(passage.id.encode()).digest() + bytes.fromhex(passage.text_hash))
    return f"{FOLDER}/{digest.hexdigest()[:32]}.parquet"


def write_receipt(storage: Storage, name: str, result: pa.Table) -> None:
    """Say that a block is done."""
    sink = io.BytesIO()
    pq.write_table(result, sink, compression="zstd")
    storage.write(name, sink.getvalue())


def read_receipt(storage: Storage, name: str) -> pa.Table | None:
    """What a block's receipt says; None if there is none, if it is damaged, or if its shard is not there any more."""
    if not storage.exists(name):
        return None
    try:
        result = pq.read_table(io.BytesIO(storage.read(name)), schema=RESULT)
    except (pa.ArrowException, OSError, ValueError, KeyError, StorageError):
        return None
    shards = {shard for shard in result["shard"].to_pylist() if shard}
    return result if all(storage.exists(shard_path(shard)) for shard in shards) else None


def unfinished(storage: Storage) -> dict[str, int]:
    """The shards that receipts name, and their rows."""
    found: dict[str, int] = {}
    for name in storage.list(FOLDER):
        receipt = read_receipt(storage, f"{FOLDER}/{name}")
        if receipt is not None:
            described = receipt.filter(pc.is_valid(receipt["shard_rows"]))
            found.update(zip(described["shard"].to_pylist(), described["shard_rows"].to_pylist(), strict=True))
    return found
