"""What a version of a bank is, in files: its manifest, the tables that the manifest names, and how one is published."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, ValidationError, model_validator

from regrad.bank.codecs import codec_for
from regrad.bank.config import CodecName
from regrad.errors import BankConflict, BankError, BankFormatError, StorageError
from regrad.models.subspace import Subspace
from regrad.settings import Settings
from regrad.storage import Storage
from regrad.text import first_line

# What a manifest says.

FORMAT = 2
SHARD_FOLDER = "shards"
BankKind = Literal["gradient", "adapter"]
_NAME = re.compile(r"(index|shard-lists|quarantine|forgotten)/[0-9a-f]{32}\.parquet|lookup/[0-9a-f]{32}\.bin")


def shard_path(shard: str) -> str:
    """The path of a shard's file from the bank's root."""
    return f"{SHARD_FOLDER}/{shard}"


class File(Settings):
    """A file that a version consists of."""

    name: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _named_by_content(self) -> File:
        if not _NAME.fullmatch(self.name) or self.name.split("/")[1].split(".")[0] != self.sha256[:32]:
            raise ValueError(f"{self.name!r:.80} is not the name of a file of a bank")
        return self


class Part(Settings):
    """Passages that were added together, or deleted: a newer part overrides an older one."""

    index: File
    shard_list: File
    lookup: File
    rows: int = Field(ge=0, description="passages with an atom")
    deleted: int = Field(ge=0, description="passages of older parts that have lost theirs")
    shards: int = Field(ge=0)


class Layout(Settings):
    """What the atoms of a bank are: banks of the same layout can exchange records.

    `translator` is the digest of the translator that generated the adapters; None if they were trained.
    """

    kind: BankKind = "gradient"
    fingerprint: str
    translator: str | None = None
    codec: CodecName
    subspace: dict[str, Any]

    def parsed_subspace(self) -> Subspace:
        """The subspace as a class; raises `ValueError` if it is not one."""
        try:
            return Subspace.from_json(self.subspace)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{str(self.subspace)!r:.80} is not a subspace: {error}") from error


class Manifest(Layout):
    """One version of a bank: its parts from the oldest to the newest."""

    format: int
    version: int = Field(ge=1)
    parent: int | None = None
    size: int = Field(ge=1, description="P, numbers in an atom")
    record_bytes: int = Field(ge=1)
    passages: int = Field(ge=0, description="passages that have an atom in this version")
    quarantined: int = Field(ge=0)
    parts: tuple[Part, ...]
    quarantine: File | None = None
    forgotten: File | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        subspace = self.parsed_subspace()
        if self.size != subspace.size:
            raise ValueError(f"size {self.size} is not the subspace's {subspace.size}")
        if self.record_bytes != codec_for(self.codec, subspace).record_bytes:
            raise ValueError(f"record_bytes {self.record_bytes} is not what {self.codec} makes of {self.size} numbers")
        return self

    @property
    def layout(self) -> Layout:
        """What kind of atoms there are, without saying which."""
        return Layout(**{name: getattr(self, name) for name in Layout.model_fields})

    @property
    def files(self) -> list[File]:
        """Every file that the version names, except for shards."""
        parts = [file for part in self.parts for file in (part.index, part.shard_list, part.lookup)]
        return parts + [file for file in (self.quarantine, self.forgotten) if file]

    @property
    def label(self) -> str:
        """What answers call this version: its number and the start of its content hash."""
        return f"{self.version}-{hashlib.sha256(self.encoded()).hexdigest()[:8]}"

    def encoded(self) -> bytes:
        """The content of the manifest's file."""
        # The key is only there if it says something, so that all other manifests keep their bytes and their labels.
        absent = {"translator"} if self.translator is None else None
        return self.model_dump_json(indent=1, exclude=absent).encode()


def check_same_layout(found: Layout, wanted: Layout, uri: str) -> None:
    """Raise `BankError` unless atoms of `wanted` may be added to a bank of `found`."""
    for name in Layout.model_fields:
        if getattr(found, name) != getattr(wanted, name):
            raise BankError(
                f"the bank at {uri} has {name} {getattr(found, name)!r:.60}, but the new atoms have "
                f"{getattr(wanted, name)!r:.60}; use another bank, or rebuild all of this one with `regrad build`",
                code="other_layout",
                differs=name,
                found=getattr(found, name),
                wanted=getattr(wanted, name),
            )


# Which versions there are, and how one is published.


POINTER = "CURRENT"
_MANIFEST = re.compile(r"(\d{8})\.json")


class _Pointer(Settings):
    format: int
    version: int = Field(ge=1)


def manifest_name(version: int) -> str:
    """The file of a version's manifest."""
    return f"manifests/{version:08d}.json"


def versions(storage: Storage) -> list[int]:
    """The versions that can be opened, the oldest first; empty for a bank that does not exist yet."""
    found = (_MANIFEST.fullmatch(name) for name in storage.list("manifests"))
    return sorted(int(match[1]) for match in found if match)


def current_version(storage: Storage) -> int | None:
    """The current version, or None for a bank that does not exist yet. Raises `BankFormatError` for another format."""
    number = _pointed_at(storage)
    if number is None or not storage.exists(manifest_name(number)):
        return max(versions(storage), default=None)
    # The manifest is the commit, and the pointer is written after it: a writer that was killed in between leaves a
    # pointer that is behind. Two look-ups are cheaper than a listing, in an object store above all.
    while storage.exists(manifest_name(number + 1)):
        number += 1
    return number


def _pointed_at(storage: Storage) -> int | None:
    """What `CURRENT` says; None if it is missing or garbage, since the manifests say the same."""
    if not storage.exists(POINTER):
        return None
    data = storage.read(POINTER)
    _check_format(storage, data)
    try:
        return _Pointer.model_validate_json(data).version
    except ValidationError:
        return None


def _check_format(storage: Storage, data: bytes) -> None:
    """Raise `BankFormatError` if the file states another format; nothing else of such a file can be relied on."""
    try:
        found = json.loads(data)
    except ValueError:
        return
    number = found.get("format") if isinstance(found, dict) else None
    if isinstance(number, int) and number != FORMAT:
        way_out = "update regrad" if number > FORMAT else "build it again with `regrad build` at another place"
        raise BankFormatError(
            f"the bank at {storage.uri} has format {number}; this regrad reads format {FORMAT}: {way_out}",
            uri=storage.uri,
            found=number,
            expected=FORMAT,
        )


def read_manifest(storage: Storage, version: int | None = None) -> Manifest:
    """The manifest of a version (the current one by default); raises `BankError` if there is none or it is damaged."""
    number = version if version is not None else current_version(storage)
    if number is None:
        raise BankError(
            f"there is no bank at {storage.uri}; make one with `regrad build`", code="not_found", uri=storage.uri
        )
    name = manifest_name(number)
    try:
        data = storage.read(name)
    except StorageError as error:
        if storage.exists(name):
            raise
        there = versions(storage)
        known = f"it has {', '.join(map(str, there[-10:]))}" if there else "it has none: make one with `regrad build`"
        raise BankError(
            f"the bank at {storage.uri} has no version {number}; {known}",
            code="version_not_found",
            uri=storage.uri,
            version=number,
            versions=there,
        ) from error
    _check_format(storage, data)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise _unreadable(storage, name, error) from error
    if manifest.version != number:
        raise BankError(
            f"{storage.uri}/{name} is damaged: it says that it is version {manifest.version}",
            code="damaged",
            file=name,
        )
    return manifest


def _unreadable(storage: Storage, name: str, error: ValidationError) -> BankError:
    """What is wrong with a manifest: it has a codec that this regrad does not know, or it is damaged."""
    problem = error.errors()[0]
    if problem["loc"] == ("codec",) and isinstance(problem["input"], str):
        return BankFormatError(
            f"the bank at {storage.uri} has codec {problem['input']!r:.40}, which this regrad does not know (it knows "
            f"{', '.join(get_args(CodecName))}): update regrad, or build the bank again at another place",
            code="unknown_codec",
            codec=problem["input"],
        )
    where = ".".join(map(str, problem["loc"]))
    return BankError(
        f"{storage.uri}/{name} is damaged: {f'{where}: ' if where else ''}{problem['msg']}; put it back from a copy of "
        "the bank, or open an older version",
        code="damaged",
        file=name,
    )


def publish(storage: Storage, manifest: Manifest) -> None:
    """Make a version, for which all files are there, the current one.

    Raises `BankConflict` if another writer has committed a version of that number.
    """
    if not storage.create(manifest_name(manifest.version), manifest.encoded()):
        raise BankConflict(storage.uri, manifest.version)
    pointer = _Pointer(format=FORMAT, version=manifest.version)
    storage.write(POINTER, pointer.model_dump_json().encode())


# The tables of a version.

INDEX = pa.schema(
    [
        pa.field("passage_id", pa.string(), nullable=False),
        pa.field("text_hash", pa.binary(32)),
        pa.field("shard", pa.dictionary(pa.int32(), pa.string())),
        pa.field("row", pa.uint32()),
        pa.field("crc32", pa.uint32()),
    ]
)
"""A passage without a shard was deleted: what older parts say of it no longer holds."""

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
        raise BankError(
            f"{storage.uri}/{file.name} is damaged: {first_line(error)}; `regrad bank verify` lists all damage",
            code="damaged",
            file=file.name,
        ) from error
    return found


def merged(older_to_newer: Sequence[pa.Table], drop_deleted: bool) -> pa.Table:
    """Index tables as one, sorted by passage id: of each passage what the newest says."""
    ages = [pa.repeat(pa.scalar(age, pa.int32()), len(part)) for age, part in enumerate(older_to_newer)]
    parts = [part.append_column("age", age) for part, age in zip(older_to_newer, ages, strict=True)]
    everything = pa.concat_tables(parts).unify_dictionaries()
    # Sorted with the newest first within each id, the first row of each id is the one that holds.
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


def rows_in_use(index: pa.Table) -> dict[str, list[int]]:
    """The rows of each shard that passages have. Two passages of one atom may share a row: it is listed once."""
    places = pa.table({"shard": index["shard"].cast(pa.string()), "row": index["row"]})
    rows = places.group_by("shard", use_threads=False).aggregate([("row", "distinct")])
    return dict(zip(rows["shard"].to_pylist(), rows["row_distinct"].to_pylist(), strict=True))


def select_shards(lists: Iterable[pa.Table], names: set[str]) -> pa.Table:
    """The rows of shard lists for these shards, each once, sorted by name."""
    everything = pa.concat_tables([SHARDS.empty_table(), *lists])
    wanted = everything.filter(pc.is_in(everything["shard"], pa.array(sorted(names), pa.string())))
    unique = wanted.group_by("shard", use_threads=False).aggregate(
        [(name, "first") for name in SHARDS.names if name != "shard"]
    )
    unique = unique.rename_columns([name.removesuffix("_first") for name in unique.column_names])
    return unique.select(SHARDS.names).sort_by("shard").cast(SHARDS)
