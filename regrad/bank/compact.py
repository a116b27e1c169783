"""Making room: what is left of shards that hold deleted atoms is copied, small shards and parts are put together."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import torch

from regrad.bank.commit import Change, publish_parts, read_part, write_part
from regrad.bank.manifest import Manifest
from regrad.bank.rows import INDEX, SHARDS, merged, rows_in_use, select_shards, shard_names
from regrad.bank.shards import ShardInfo, shard_table, write_shard
from regrad.bank.stream import checked_records
from regrad.bank.versions import read_manifest
from regrad.bank.writer import index_rows
from regrad.storage import Storage

SHARD_BYTES = 64 * 1024 * 1024
_SMALL = 0.5


def compact(uri: str, shard_bytes: int = SHARD_BYTES) -> Manifest:
    """A version with the same atoms in one part, without a byte of deleted ones in its shards; the same if it has none.

    The former versions and their files stay until `gc`. Raises `BankConflict` if somebody commits meanwhile and
    `AtomDamaged` for an atom that cannot be copied.
    """
    storage = Storage(uri)
    base = read_manifest(storage)
    if not base.parts:
        return base
    index, shards = whole_index(storage, base)
    old = _to_rewrite(index, shards, shard_bytes)
    if not old and len(base.parts) == 1:
        return base
    moving = index.filter(pc.is_in(index["shard"].cast(pa.string()), pa.array(sorted(old), pa.string())))
    staying = index.filter(pc.invert(pc.is_in(index["shard"].cast(pa.string()), pa.array(sorted(old), pa.string()))))
    copies, infos = _copy(storage, base, moving, shards, max(1, shard_bytes // base.record_bytes))
    everything = merged([staying, *copies], drop_deleted=True)
    part = write_part(storage, everything, pa.concat_tables([shards, shard_table(infos)]))
    parts = (part,) if len(everything) else ()
    return publish_parts(storage, base.layout, base, parts, len(everything), Change(shards=shard_table(infos)))


def whole_index(storage: Storage, manifest: Manifest) -> tuple[pa.Table, pa.Table]:
    """The index and the shard list of a version, all parts put together."""
    tables = [read_part(storage, part) for part in manifest.parts]
    index = merged([INDEX.empty_table(), *(index for index, _ in tables)], drop_deleted=True)
    lists = [SHARDS.empty_table(), *(shards for _, shards in tables)]
    return index, select_shards(lists, shard_names(index))


def _to_rewrite(index: pa.Table, shards: pa.Table, shard_bytes: int) -> set[str]:
    """Shards that hold atoms which no passage has any more, and small ones if there is more than one of them."""
    live = rows_in_use(index)
    listed = list(zip(*(shards[name].to_pylist() for name in ("shard", "rows", "bytes")), strict=True))
    holed = {shard for shard, rows, _ in listed if live[shard] < rows}
    small = {shard for shard, _, size in listed if size < _SMALL * shard_bytes}
    return holed | (small if len(small) > 1 else set())


def _copy(
    storage: Storage, base: Manifest, moving: pa.Table, shards: pa.Table, rows_per_shard: int
) -> tuple[list[pa.Table], list[ShardInfo]]:
    """Write the records of an index into new shards; the new index and the shards."""
    tables, infos = [], []
    for rows, records in checked_records(storage, base.record_bytes, moving, shards, rows_per_shard):
        info, crcs = write_shard(storage, torch.from_numpy(records))
        hashes = [value.hex() if value else "" for value in rows["text_hash"].to_pylist()]
        tables.append(index_rows(rows["passage_id"].to_pylist(), hashes, info, crcs))
        infos.append(info)
    return tables, infos
