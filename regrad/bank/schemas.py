"""The tables of a bank as Arrow: what an index, a shard list and a quarantine list hold, and how parts are merged."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from regrad.bank.manifest import File
from regrad.errors import BankError
from regrad.storage import Storage

INDEX = pa.schema(
    [
        pa.field("passage_id", pa.string(), nullable=False),
        pa.field("text_hash", pa.binary(32)),
        pa.field("shard", pa.dictionary(pa.int32(), pa.string())),
        pa.field("row", pa.uint32()),
        pa.field("crc32", pa.uint32()),
    ]
)
"""A passage without a shard has been deleted: what older parts say of it does not hold any more."""

SHARDS = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("rows", pa.uint32(), nullable=False),
        pa.field("offset", pa.uint32(), nullable=False),
        pa.field("bytes", pa.uint64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
QUARANTINE = pa.schema(
    [pa.field("passage_id", pa.string(), nullable=False), pa.field("reason", pa.string(), nullable=False)]
)
FORGOTTEN = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("version", pa.uint32(), nullable=False),
    ]
)
"""The hash of a deleted passage's id, and the first version without it: no older version gives it out."""


def table(schema: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
    """Columns as a table of this schema; columns that are not given are null."""
    length = len(next(iter(columns.values())))
    arrays = [_array(columns[f.name], f.type) if f.name in columns else pa.nulls(length, f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: Any, kind: pa.DataType) -> Any:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values if values.type == kind else values.cast(kind)
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    return pa.array(values, kind)


def write_table(storage: Storage, folder: str, content: pa.Table) -> File:
    """Write a table as a Parquet file named by its content."""
    sink = io.BytesIO()
    pq.write_table(content, sink, compression="zstd")
    name, digest, size = storage.write_named(folder, ".parquet", sink.getbuffer())
    return File(name=name, bytes=size, sha256=digest)


def read_table(storage: Storage, file: File, schema: pa.Schema) -> pa.Table:
    """A table that `write_table` wrote; raises `BankError` naming the file if it is damaged."""
    data = storage.read(file.name)
    try:
        if len(data) != file.bytes:
            raise ValueError(f"{file.bytes} bytes are expected, found {len(data)}")
        found = pq.read_table(io.BytesIO(data), schema=schema)
        found.validate(full=True)
    except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BankError(
            f"{storage.uri}/{file.name} is damaged: {reason}; `regrad bank verify` lists all damage"
        ) from error
    return found


def merged(older_to_newer: Sequence[pa.Table], drop_deleted: bool) -> pa.Table:
    """Index tables as one, sorted by passage id: of each passage what the newest says."""
    ages = [pa.repeat(pa.scalar(age, pa.int32()), len(part)) for age, part in enumerate(older_to_newer)]
    parts = [part.append_column("age", age) for part, age in zip(older_to_newer, ages, strict=True)]
    everything = pa.concat_tables(parts).unify_dictionaries()
    everything = everything.sort_by([("passage_id", "ascending"), ("age", "descending")])
    ids = everything["passage_id"].combine_chunks()
    if len(ids):
        first = pa.concat_arrays([pa.array([True]), pc.not_equal(ids[1:], ids[:-1])])
        everything = everything.filter(first)
    if drop_deleted:
        everything = everything.filter(pc.is_valid(everything["shard"]))
    return everything.drop_columns("age").cast(INDEX)


def shard_names(index: pa.Table) -> set[str]:
    """The shards that an index refers to."""
    return {name for name in pc.unique(index.unify_dictionaries()["shard"]).to_pylist() if name}


def rows_in_use(index: pa.Table) -> dict[str, int]:
    """How many rows of each shard an index refers to. Two passages of the same atom may share a row: it counts once."""
    places = pa.table({"shard": index["shard"].cast(pa.string()), "row": index["row"]})
    counted = places.group_by("shard", use_threads=False).aggregate([("row", "count_distinct")])
    return dict(zip(counted["shard"].to_pylist(), counted["row_count_distinct"].to_pylist(), strict=True))


def select_shards(lists: Iterable[pa.Table], names: set[str]) -> pa.Table:
    """The rows of shard lists for these shards, each once, sorted by name."""
    everything = pa.concat_tables([SHARDS.empty_table(), *lists])
    wanted = everything.filter(pc.is_in(everything["shard"], pa.array(sorted(names), pa.string())))
    unique = wanted.group_by("shard", use_threads=False).aggregate(
        [(name, "first") for name in SHARDS.names if name != "shard"]
    )
    unique = unique.rename_columns([name.removesuffix("_first") for name in unique.column_names])
    return unique.select(SHARDS.names).sort_by("shard").cast(SHARDS)
