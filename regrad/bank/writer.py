"""Commits: a change of a bank becomes its next version, whole or not at all, even while others write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from regrad.bank.codecs import codec_for
from regrad.bank.format import (
    FORGOTTEN,
    FORMAT,
    INDEX,
    QUARANTINE,
    SHARD_FOLDER,
    SHARDS,
    File,
    Layout,
    Manifest,
    Part,
    check_same_layout,
    current_version,
    merged,
    publish,
    read_manifest,
    read_table,
    select_shards,
    shard_names,
    shard_path,
    table,
    write_table,
)
from regrad.bank.index import Catalog, encode_lookup, key_of
from regrad.bank.shards import ShardInfo, shard_table, write_shard
from regrad.errors import BankConflict, BankError
from regrad.storage import Storage

_MERGE_FACTOR = 4
_TRIES = 10
_LIST_FROM = 64


@dataclass(frozen=True)
class Change:
    """What a version does to the one before.

    `index` and `shards` (tables `format.INDEX`, `format.SHARDS`) are passages that got an atom, `removed` those that
    lose theirs: for good if `forget`, so that older versions do not give them out either. `quarantine` are the passages
    that were refused: added to the known ones, or in place of them if the change describes the `whole` corpus.
    """

    index: pa.Table = field(default_factory=INDEX.empty_table)
    shards: pa.Table = field(default_factory=SHARDS.empty_table)
    removed: Sequence[str] = ()
    quarantine: pa.Table = field(default_factory=QUARANTINE.empty_table)
    whole: bool = False
    forget: bool = False


def commit(storage: Storage, layout: Layout, change: Change, base: Manifest | None, fresh: bool = False) -> Manifest:
    """Make the version that comes after `base` (None: the first). A `fresh` one keeps no atom of `base`.

    Raises `BankConflict` if another writer has committed one meanwhile, and `BankError` if a passage id occurs twice,
    if the bank has another layout, or if a shard is gone.
    """
    old = base.parts if base and not fresh else ()
    if base and not fresh:
        check_same_layout(base.layout, layout, storage.uri)
    parts = _parts(storage, change, old)
    catalog = Catalog(storage, old, _record_bytes(layout))
    passages = base.passages if base and old else 0
    passages += sum(catalog.find(passage_id) is None for passage_id in change.index["passage_id"].to_pylist())
    passages -= sum(catalog.find(passage_id) is not None for passage_id in change.removed)
    return publish_parts(storage, layout, base, parts, passages, change)


def commit_onto_newest(storage: Storage, layout: Layout, change: Change) -> Manifest:
    """Make a version after the one that is newest at commit time: for changes that mean the same after any version."""
    for attempt in range(_TRIES):
        number = current_version(storage)
        base = read_manifest(storage, number) if number else None
        try:
            return commit(storage, layout, change, base)
        except BankConflict:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError


def publish_parts(
    storage: Storage, layout: Layout, base: Manifest | None, parts: tuple[Part, ...], passages: int, change: Change
) -> Manifest:
    """Write and publish the manifest of a version with these parts that comes after `base`; raises as `commit`."""
    version = base.version + 1 if base else 1
    quarantine = _quarantine(storage, change, base)
    manifest = Manifest(
        **layout.model_dump(),
        format=FORMAT,
        version=version,
        parent=base.version if base else None,
        size=layout.parsed_subspace().size,
        record_bytes=_record_bytes(layout),
        passages=passages,
        quarantined=len(quarantine),
        parts=parts,
        quarantine=write_table(storage, "quarantine", quarantine) if len(quarantine) else None,
        forgotten=_forgotten(storage, change, base, version),
    )
    # Last before the commit: a shard may have been removed meanwhile, by hand or by `gc`.
    _check_shards(storage, change.shards["shard"].to_pylist())
    publish(storage, manifest)
    return manifest


def write_part(storage: Storage, index: pa.Table, shards: pa.Table) -> Part:
    """Write the three files of a part. `index` is sorted by passage id; shards that it does not name are left out."""
    shards = select_shards([shards], shard_names(index))
    name, digest, size = storage.write_named("lookup", ".bin", encode_lookup(index, shards))
    live = len(index) - index["shard"].null_count
    return Part(
        index=write_table(storage, "index", index),
        shard_list=write_table(storage, "shard-lists", shards),
        lookup=File(name=name, bytes=size, sha256=digest),
        rows=live,
        deleted=len(index) - live,
        shards=len(shards),
    )


def read_part_tables(storage: Storage, part: Part) -> tuple[pa.Table, pa.Table]:
    """The index and the shard list of a part; raises `BankError` naming a file that is damaged."""
    return read_table(storage, part.index, INDEX), read_table(storage, part.shard_list, SHARDS)


def _record_bytes(layout: Layout) -> int:
    return codec_for(layout.codec, layout.parsed_subspace()).record_bytes


def _parts(storage: Storage, change: Change, old: tuple[Part, ...]) -> tuple[Part, ...]:
    """The new part after the old ones; raises `BankError` if a passage id occurs twice in the change."""
    # 1. The new part's index: passages that got an atom, and rows without a shard for those that lost theirs.
    index = pa.concat_tables([change.index, table(INDEX, {"passage_id": list(change.removed)})]).unify_dictionaries()
    if not len(index):
        return old
    index = index.sort_by("passage_id")
    ids = index["passage_id"].combine_chunks()
    again = ids[1:].filter(pc.equal(ids[1:], ids[:-1])) if len(ids) > 1 else ids[:0]
    if len(again):
        passage_id = again[0].as_py()
        raise BankError(
            f"passage id {passage_id!r} occurs more than once; ids must be unique",
            code="duplicate_id",
            passage_id=passage_id,
        )
    # 2. Old parts that are small beside it are merged into it. So each part is at least four times as large as the next
    # newer one: a look-up asks a logarithmic number of parts, and a row is rewritten a logarithmic number of times.
    shards = [change.shards]
    while old and old[-1].rows + old[-1].deleted <= _MERGE_FACTOR * len(index):
        older, older_shards = read_part_tables(storage, old[-1])
        old = old[:-1]
        shards.append(older_shards)
        index = merged([older, index], drop_deleted=not old)
    # 3. Deletions need to be known only while there is an older part that they override.
    if not old:
        index = index.filter(pc.is_valid(index["shard"]))
    if not len(index):
        return old
    return (*old, write_part(storage, index, pa.concat_tables(shards)))


def _quarantine(storage: Storage, change: Change, base: Manifest | None) -> pa.Table:
    known = base.quarantine if base and not change.whole else None
    before = [read_table(storage, known, QUARANTINE)] if known else []
    replaced = pa.concat_arrays(
        [
            *change.index["passage_id"].chunks,
            *change.quarantine["passage_id"].chunks,
            pa.array(change.removed, pa.string()),
        ]
    )
    kept = [known.filter(pc.invert(pc.is_in(known["passage_id"], replaced))) for known in before]
    return pa.concat_tables([*kept, change.quarantine]).sort_by([("passage_id", "ascending"), ("reason", "ascending")])


def _forgotten(storage: Storage, change: Change, base: Manifest | None, version: int) -> File | None:
    """The list so far plus what is forgotten now. It is kept for ever: a deleted atom is not computed online either."""
    known = base.forgotten if base else None
    removed = list(change.removed) if change.forget else []
    if not removed:
        return known
    keys = sorted(int.from_bytes(key_of(passage_id), "big") for passage_id in removed)
    new = table(FORGOTTEN, {"key": pa.array(keys, pa.uint64()), "version": [version] * len(keys)})
    before = [read_table(storage, known, FORGOTTEN)] if known else []
    return write_table(storage, "forgotten", pa.concat_tables([*before, new]))


def _check_shards(storage: Storage, names: Sequence[str]) -> None:
    if len(names) < _LIST_FROM:
        missing = [name for name in names if not storage.exists(shard_path(name))]
    else:
        there = set(storage.list(SHARD_FOLDER))
        missing = [name for name in names if name not in there]
    if missing:
        raise BankError(
            f"shard {missing[0]} was written to {storage.uri} and is gone; nothing was committed, run the same command "
            "again",
            code="shard_missing",
            shard=missing[0],
        )


def index_rows(ids: Sequence[str], text_hashes: Sequence[str], shard: ShardInfo, crcs: Sequence[int]) -> pa.Table:
    """The index of the passages whose records are the rows of one shard, in order; an empty hash is an unknown text."""
    hashes = [bytes.fromhex(text_hash) if text_hash else None for text_hash in text_hashes]
    columns = {"passage_id": list(ids), "text_hash": hashes, "shard": [shard.shard] * len(ids)}
    return table(INDEX, {**columns, "row": list(range(len(ids))), "crc32": list(crcs)})


class BankWriter:
    """Collects records, writes a shard whenever there are `shard_passages`, and commits them all together.

    What is not committed is not seen. An id may be added once; one that the bank has already is replaced.
    """

    def __init__(self, uri: str, layout: Layout, shard_passages: int = 1024) -> None:
        self._storage = Storage(uri)
        self._layout = layout
        self._shard_passages = shard_passages
        self.codec = codec_for(layout.codec, layout.parsed_subspace())
        self._waiting: list[tuple[str, str, Tensor]] = []
        self._indexes: list[pa.Table] = []
        self._shards: list[ShardInfo] = []
        self._refused: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._waiting) + sum(map(len, self._indexes))

    def add_atom(self, passage_id: str, text_hash: str, atom_P: Tensor) -> None:
        """Encode and add one atom [P]; raises `BankError` for another size or a number that is not finite."""
        self.add_record(passage_id, text_hash, self.codec.encode(atom_P.unsqueeze(0))[0])

    def add_record(self, passage_id: str, text_hash: str, record: Tensor) -> None:
        """Add one encoded record [record_bytes] uint8."""
        if record.shape != (self.codec.record_bytes,) or record.dtype != torch.uint8:
            raise BankError(
                f"a record of {self.codec.record_bytes} bytes is expected, found {tuple(record.shape)}",
                code="wrong_shape",
                expected=self.codec.record_bytes,
                found=list(record.shape),
            )
        self._waiting.append((passage_id, text_hash, record.cpu().contiguous()))
        if len(self._waiting) >= self._shard_passages:
            self._flush()

    def refuse(self, passage_id: str, reason: str) -> None:
        """Put a passage on the quarantine list."""
        self._refused.append((passage_id, reason))

    def commit(self) -> Manifest:
        """Commit what was added, on top of the current version by then; the writer is empty afterwards."""
        manifest = commit_onto_newest(self._storage, self._layout, self.change())
        self._indexes, self._shards, self._refused = [], [], []
        return manifest

    def change(self) -> Change:
        """What was added, with all shards written."""
        if self._waiting:
            self._flush()
        return Change(
            index=pa.concat_tables([INDEX.empty_table(), *self._indexes]),
            shards=shard_table(self._shards),
            quarantine=table(
                QUARANTINE,
                {"passage_id": [name for name, _ in self._refused], "reason": [why for _, why in self._refused]},
            ),
        )

    def _flush(self) -> None:
        ids, hashes, records = zip(*self._waiting, strict=True)
        shard, crcs = write_shard(self._storage, records)
        self._indexes.append(index_rows(ids, hashes, shard, crcs))
        self._shards.append(shard)
        self._waiting = []


def whole_index(storage: Storage, manifest: Manifest) -> tuple[pa.Table, pa.Table]:
    """The index and the shard list of a version, all parts put together."""
    tables = [read_part_tables(storage, part) for part in manifest.parts]
    index = merged([INDEX.empty_table(), *(index for index, _ in tables)], drop_deleted=True)
    lists = [SHARDS.empty_table(), *(shards for _, shards in tables)]
    return index, select_shards(lists, shard_names(index))
