"""Adding atoms to a bank from one process: for imports, for atoms computed on the way, for a notebook."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor

from regrad.bank.codecs import codec_for
from regrad.bank.commit import Change, commit_onto_newest
from regrad.bank.manifest import Layout, Manifest
from regrad.bank.rows import INDEX, QUARANTINE, table
from regrad.bank.shards import ShardInfo, shard_table, write_shard
from regrad.errors import BankError
from regrad.storage import Storage


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
        self._storage, self._layout, self._most = Storage(uri), layout, shard_passages
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
            raise BankError(f"a record of {self.codec.record_bytes} bytes is expected, found {tuple(record.shape)}")
        self._waiting.append((passage_id, text_hash, record.cpu().contiguous()))
        if len(self._waiting) >= self._most:
            self._flush()

    def refuse(self, passage_id: str, reason: str) -> None:
        """Put a passage on the quarantine list."""
        self._refused.append((passage_id, reason))

    def commit(self, spare_deleted: bool = False) -> Manifest:
        """Commit what was added, on top of whatever version is in force by then; the writer is empty afterwards.

        With `spare_deleted`, not what was deleted by then.
        """
        manifest = commit_onto_newest(self._storage, self._layout, self.change(), spare_deleted)
        self._indexes, self._shards, self._refused = [], [], []
        return manifest

    def change(self) -> Change:
        """What was added, with all shards written."""
        if self._waiting:
            self._flush()
        ids, reasons = ([item[i] for item in self._refused] for i in range(2))
        return Change(
            index=pa.concat_tables([INDEX.empty_table(), *self._indexes]),
            shards=shard_table(self._shards),
            quarantine=table(QUARANTINE, {"passage_id": ids, "reason": reasons}),
        )

    def _flush(self) -> None:
        ids, hashes, records = zip(*self._waiting, strict=True)
        shard, crcs = write_shard(self._storage, records)
        self._indexes.append(index_rows(ids, hashes, shard, crcs))
        self._shards.append(shard)
        self._waiting = []
