"""Reading a bank: atoms by passage id, one ranged read each, checked on every fetch."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from regrad.bank.codecs import codec_for
from regrad.bank.manifest import read_manifest
from regrad.errors import AtomNotFound, BankError, FingerprintMismatch
from regrad.language_model.subspace import Subspace
from regrad.storage import Storage

_PARALLEL_READS = 16


class BankReader:
    """One version of a bank, opened. Nothing of the shards is loaded until it is asked for.

    Raises `BankError` if there is no bank or it is damaged, `FingerprintMismatch` if it belongs to another MetaInit
    than `fingerprint`.
    """

    def __init__(self, uri: str, fingerprint: str | None = None, version: int | None = None) -> None:
        self._storage = Storage(uri)
        self.manifest = read_manifest(self._storage, version)
        if fingerprint is not None and fingerprint != self.manifest.fingerprint:
            raise FingerprintMismatch(self.manifest.fingerprint, fingerprint)
        self._codec = codec_for(self.manifest.codec, Subspace.from_json(self.manifest.subspace))
        self._index = self._read_index()
        self._threads = ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="bank")

    def __len__(self) -> int:
        return self.manifest.passages

    def __contains__(self, passage_id: str) -> bool:
        return passage_id in self._index

    @property
    def passage_ids(self) -> list[str]:
        """Every passage that has an atom."""
        return list(self._index)

    def read(self, passage_ids: Sequence[str]) -> Tensor:
        """Atoms [n, P] float32 in the order asked for.

        Raises `AtomNotFound` for an unknown id, `BankError` for an atom whose checksum does not match.
        """
        return self._codec.decode(self._records(passage_ids))

    def sum(self, passage_ids: Sequence[str]) -> Tensor:
        """The sum [P] of these passages' atoms in float32; zeros for none. Raises as `read`."""
        return self._codec.add_decoded(self._records(passage_ids), torch.zeros(self.manifest.size))

    def _records(self, passage_ids: Sequence[str]) -> Tensor:
        missing = [passage_id for passage_id in passage_ids if passage_id not in self._index]
        if missing:
            raise AtomNotFound(f"the bank at {self._storage.uri} has no atom for passage {missing[0]!r}")
        records = list(self._threads.map(self._record, passage_ids))
        return torch.stack(records) if records else torch.empty(0, self.manifest.record_bytes, dtype=torch.uint8)

    def _record(self, passage_id: str) -> Tensor:
        shard, row, checksum = self._index[passage_id]
        length = self.manifest.record_bytes
        start = self.manifest.shards[shard].offset + row * length
        data = self._storage.read(f"shards/{shard}", start, start + length)
        if len(data) != length or zlib.crc32(data) != checksum:
            raise BankError(
                f"the atom of passage {passage_id!r} in shard {shard} is damaged (its checksum does not match)"
            )
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    def _read_index(self) -> dict[str, tuple[str, int, int]]:
        try:
            table = pq.read_table(io.BytesIO(self._storage.read(self.manifest.index)))
            shards = pc.cast(table["shard"], pa.string()).to_pylist()
            columns = [table[name].to_pylist() for name in ("passage_id", "row", "crc32")]
        except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
            raise BankError(f"the index of the bank at {self._storage.uri} is damaged: {error}") from error
        ids, rows, checksums = columns
        unknown = set(shards) - set(self.manifest.shards)
        if unknown or any(None in column for column in (ids, rows, checksums)):
            raise BankError(f"the index of the bank at {self._storage.uri} is damaged: it names what is not there")
        return dict(zip(ids, zip(shards, rows, checksums, strict=True), strict=True))
