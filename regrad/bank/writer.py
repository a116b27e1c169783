"""Writing a bank: shards first (by many workers), then one commit that makes them visible.

A writer that dies before the commit leaves shards that no version names, and the bank as it was.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save
from torch import Tensor

from regrad.bank.codecs import Codec, codec_for
from regrad.bank.manifest import FORMAT, POINTER, Manifest, Pointer, Shard, current_version, manifest_name
from regrad.config import CodecName
from regrad.corpus import Passage
from regrad.errors import BankError
from regrad.language_model.subspace import Subspace
from regrad.storage import Storage

ATOMS = "atoms"
_SAFETENSORS_PREFIX = 8


@dataclass(frozen=True)
class IndexRow:
    """Where one passage's atom is, or (`reason` not empty) why it has none."""

    passage_id: str
    text_hash: str
    shard: str = ""
    row: int = 0
    crc32: int = 0
    shard_rows: int = 0
    offset: int = 0
    sha256: str = ""
    reason: str = ""


def write_shard(storage: Storage, codec: Codec, passages: Sequence[Passage], atoms_NP: Tensor) -> list[IndexRow]:
    """Encode and write one shard, named by its content (writing it twice changes nothing); returns its index rows."""
    records = codec.encode(atoms_NP).cpu()
    data = save({ATOMS: records})
    digest = hashlib.sha256(data).hexdigest()
    name = f"{digest[:32]}.safetensors"
    storage.write(f"shards/{name}", data)
    offset = _SAFETENSORS_PREFIX + int.from_bytes(data[:_SAFETENSORS_PREFIX], "little")
    return [
        IndexRow(
            passage.id,
            passage.text_hash,
            name,
            row,
            zlib.crc32(records[row].numpy().tobytes()),
            len(passages),
            offset,
            digest,
        )
        for row, passage in enumerate(passages)
    ]


def commit(
    storage: Storage, fingerprint: str, codec: CodecName, subspace: Subspace, rows: Sequence[IndexRow]
) -> Manifest:
    """Write index, quarantine list and manifest, then swing the pointer; returns the new version.

    Raises `BankError` if a passage id occurs twice or nothing could be extracted.
    """
    kept = sorted((row for row in rows if not row.reason), key=lambda row: row.passage_id)
    bad = sorted((row for row in rows if row.reason), key=lambda row: row.passage_id)
    _check(kept, bad)
    parent = current_version(storage)
    manifest = Manifest(
        format=FORMAT,
        version=(parent or 0) + 1,
        parent=parent,
        fingerprint=fingerprint,
        codec=codec,
        subspace=subspace.to_json(),
        size=subspace.size,
        record_bytes=codec_for(codec, subspace).record_bytes,
        passages=len(kept),
        quarantined=len(bad),
        shards={row.shard: Shard(rows=row.shard_rows, offset=row.offset, sha256=row.sha256) for row in kept},
        index=_write_named(storage, "index", "parquet", _parquet(kept)),
        quarantine=_write_named(storage, "quarantine", "jsonl", _quarantine(bad)),
    )
    storage.write(manifest_name(manifest.version), manifest.model_dump_json(indent=1).encode())
    pointer = Pointer(format=FORMAT, version=manifest.version)
    storage.write(POINTER, pointer.model_dump_json().encode())
    return manifest


def _check(kept: Sequence[IndexRow], bad: Sequence[IndexRow]) -> None:
    if not kept:
        reason = f"; the first was refused because: {bad[0].reason}" if bad else "; the corpus is empty"
        raise BankError(f"no passage gave an atom{reason}")
    for first, second in itertools.pairwise(kept):
        if first.passage_id == second.passage_id:
            raise BankError(f"passage id {first.passage_id!r} occurs more than once in the corpus; ids must be unique")


def _parquet(rows: Sequence[IndexRow]) -> bytes:
    table = pa.table(
        {
            "passage_id": pa.array([row.passage_id for row in rows], pa.string()),
            "text_hash": pa.array([row.text_hash for row in rows], pa.string()),
            "shard": pa.array([row.shard for row in rows], pa.string()).dictionary_encode(),
            "row": pa.array([row.row for row in rows], pa.uint32()),
            "crc32": pa.array([row.crc32 for row in rows], pa.uint32()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _quarantine(rows: Sequence[IndexRow]) -> bytes:
    return "".join(json.dumps({"id": row.passage_id, "reason": row.reason}) + "\n" for row in rows).encode()


def _write_named(storage: Storage, folder: str, suffix: str, data: bytes) -> str:
    name = f"{folder}/{hashlib.sha256(data).hexdigest()[:32]}.{suffix}"
    storage.write(name, data)
    return name
