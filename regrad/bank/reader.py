"""Reading a bank: atoms by passage id, from the nearest tier, checked on every fetch, summed as they are stored.

A fetch goes memory, local disk, store. Atoms that memory has are had at once. Small local ones are read in the caller's
thread, all others in a pool, where two callers who want the same atom share one fetch (a flight).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from operator import itemgetter
from threading import Lock
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from regrad.bank.codecs import codec_for
from regrad.bank.config import TiersConfig
from regrad.bank.format import FORGOTTEN, Manifest, current_version, merged, read_manifest, read_table
from regrad.bank.index import AtomLocation, Catalog, key_of
from regrad.bank.tiers import DiskTier, MemoryTier, StoreTier, Tier
from regrad.bank.writer import read_part_tables
from regrad.data.passages import Passage
from regrad.errors import AtomDamaged, AtomNotFound, BankError, FingerprintMismatch, StorageError
from regrad.storage import Storage

_INLINE_BYTES = 1 << 20
_REMEMBERED = 1 << 16


class Fetched(NamedTuple):
    """One passage's record [record_bytes] uint8 and the tier that it came from, or why there is none.

    `error` and `code` are what `read` raises for a passage without a record.
    """

    record: Tensor | None
    tier: Tier = Tier.MISSING
    problem: str = ""
    deleted: bool = False
    error: type[BankError | StorageError] = AtomNotFound
    code: str = ""


class BankReader:
    """One version of a bank, opened: how much is read depends on what is asked for, not on the size of the bank.

    Raises `BankError` if there is no bank or it is damaged, `FingerprintMismatch` if it belongs to another MetaInit
    than `fingerprint`. Readers of several versions may share a memory tier. Safe for threads. Close it after use, or
    use it in a `with`.
    """

    def __init__(
        self,
        uri: str,
        fingerprint: str | None = None,
        version: int | None = None,
        tiers: TiersConfig = TiersConfig(),
        memory: MemoryTier | None = None,
    ) -> None:
        self._storage = Storage(uri)
        self._tiers = tiers
        self.manifest = read_manifest(self._storage, version)
        if fingerprint is not None and fingerprint != self.manifest.fingerprint:
            raise FingerprintMismatch(self.manifest.fingerprint, fingerprint)
        self.label = self.manifest.label  # a hash of the whole manifest, which every answer names
        self.codec = codec_for(self.manifest.codec, self.manifest.parsed_subspace())
        self._catalog = Catalog(self._storage, self.manifest.parts, self.codec.record_bytes)
        self._memory = memory or MemoryTier(tiers.memory_bytes)
        remote = not self._storage.is_local
        self._disk = DiskTier(tiers.disk, tiers.disk_bytes) if tiers.disk and remote else None
        self._store = StoreTier(self._storage, self.codec.record_bytes, tiers.backoff_seconds)
        self._inline = self._storage.is_local and self.codec.record_bytes <= _INLINE_BYTES
        at_once = max(1, min(tiers.parallel_reads, tiers.inflight_bytes // self.codec.record_bytes))
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="bank")
        self._flights: dict[AtomLocation, Future[Fetched]] = {}
        self._located: dict[str, AtomLocation] = {}
        self._lock = Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def prepare(self) -> None:
        """Read now what the first look-up would read else: the newest version, and what was deleted up to it."""
        self._check_open()
        _ = self._forgotten

    def close(self) -> None:
        """Release threads and mapped files. Fetches that have begun still end; a new one raises `BankError`."""
        with self._lock:
            self._closed = True
            self._threads.shutdown(wait=False)
            self._located.clear()
        self._catalog.close()

    @property
    def uri(self) -> str:
        """Where the bank is."""
        return self._storage.uri

    def __len__(self) -> int:
        return self.manifest.passages

    def __contains__(self, passage_id: str) -> bool:
        return self.locate(passage_id) is not None

    def passage_ids(self) -> list[str]:
        """Every passage that has an atom, sorted. Reads the whole index: not for a bank of millions."""
        if not self.manifest.parts:
            return []
        index = merged([read_part_tables(self._storage, part)[0] for part in self.manifest.parts], drop_deleted=True)
        ids: list[str] = index["passage_id"].to_pylist()
        return [passage_id for passage_id in ids if not (self._is_old and self.was_deleted(passage_id))]

    def locate(self, passage_id: str) -> AtomLocation | None:
        """Where the passage's atom is; None if it has none."""
        known = self._located.get(passage_id)
        if known is not None:
            return known
        self._check_open()
        found = self._catalog.find(passage_id)
        if found is not None and self._is_old and self.was_deleted(passage_id):
            found = None
        if found is not None:
            if len(self._located) >= _REMEMBERED:
                self._located.clear()
            self._located[passage_id] = found
        return found

    def was_deleted(self, passage_id: str) -> bool:
        """Whether the passage was deleted by this version or a later one: then its atom must not be read from here."""
        self._check_open()
        version = self._forgotten.get(key_of(passage_id))
        if version is None:
            return False
        return version > self.manifest.version or self._catalog.find(passage_id) is None

    def is_superseded(self) -> bool:
        """Whether a version was committed after this reader looked: only a new reader knows what was deleted since.

        False if the store does not answer: what was read before stays right.
        """
        try:
            return current_version(self._storage) != self._newest.version
        except StorageError:
            return False

    def fetch(self, passages: Sequence[str | Passage], seconds: float | None = None) -> list[Fetched]:
        """The records in the order asked for, all tiers tried, by the deadline (the settings' by default).

        Nothing is raised for one atom: one that is absent, of another text than the passage's, damaged, or late has no
        record and says why. An atom that another caller is fetching is not fetched twice.
        """
        deadline = time.monotonic() + (self._tiers.deadline_seconds if seconds is None else seconds)
        started = [self._start(passage, deadline) for passage in passages]
        return [item if isinstance(item, Fetched) else _wait(item, deadline) for item in started]

    def deletions(self, passages: Sequence[str | Passage], seconds: float | None = None) -> list[Fetched]:
        """Which of these were deleted, as `fetch` says it, without reading any atom."""
        ids = [passage if isinstance(passage, str) else passage.id for passage in passages]
        return [self._absent(id_) if self.was_deleted(id_) else Fetched(None, problem="not asked for") for id_ in ids]

    def read(self, passages: Sequence[str | Passage]) -> Tensor:
        """Atoms [n, P] float32 in the order asked for.

        Raises `AtomNotFound` for a passage without an atom, `AtomDamaged` for one whose checksum does not match,
        `StorageError` if the store does not answer in time.
        """
        records = self._records(passages)
        empty = torch.empty(0, self.codec.record_bytes, dtype=torch.uint8)
        return self.codec.decode(torch.stack(records) if records else empty)

    def sum(self, passages: Sequence[str | Passage]) -> Tensor:
        """The sum [P] of these passages' atoms in float32; zeros for none. Raises as `read`."""
        return self.codec.sum(self._records(passages))

    def _records(self, passages: Sequence[str | Passage]) -> list[Tensor]:
        known = self._all_in_memory(passages)
        if known is not None:
            return known
        found = self.fetch(passages)
        for passage, item in zip(passages, found, strict=True):
            if item.record is None:
                name = passage if isinstance(passage, str) else passage.id
                raise item.error(
                    f"the bank at {self._storage.uri} has no atom for passage {name!r}: {item.problem}",
                    code=item.code,
                    passage_id=name,
                )
        return [item.record for item in found if item.record is not None]

    def _all_in_memory(self, passages: Sequence[str | Passage]) -> list[Tensor] | None:
        """The records if memory has every one: the usual case of a warm reader, so it takes few steps for each."""
        places = []
        for passage in passages:
            location = self._located.get(passage if isinstance(passage, str) else passage.id)
            if location is None or not (isinstance(passage, str) or location.entry.belongs_to(passage.text_hash)):
                return None
            places.append((location.shard, location.start))
        return self._memory.get_all(places)

    def _start(self, passage: str | Passage, deadline: float) -> Fetched | Future[Fetched]:
        """What memory has, at once; else the fetch, which another caller may have begun."""
        passage_id = passage if isinstance(passage, str) else passage.id
        location = self.locate(passage_id)
        if location is None:
            return self._absent(passage_id)
        if isinstance(passage, Passage) and not location.entry.belongs_to(passage.text_hash):
            problem = "its atom was computed from another text; add the passage again"
            return Fetched(None, problem=problem, code="other_text")
        record = self._memory.get((location.shard, location.start))
        if record is not None:
            return Fetched(record, Tier.MEMORY)
        if self._inline:
            return self._get(location, deadline)
        with self._lock:
            flight = self._flights.get(location)
            if flight is None:
                self._check_open()
                flight = self._flights[location] = self._threads.submit(self._fly, location, deadline)
        return flight

    def _check_open(self) -> None:
        if self._closed:
            raise BankError(f"the bank at {self._storage.uri} was closed", code="closed", uri=self._storage.uri)

    def _absent(self, passage_id: str) -> Fetched:
        if self.was_deleted(passage_id):
            return Fetched(None, problem="it was deleted", deleted=True, code="deleted")
        return Fetched(None, problem="it is not in this version")

    def _fly(self, location: AtomLocation, deadline: float) -> Fetched:
        """A fetch in the pool. It always leaves the list: a flight that stayed there would be waited for for ever."""
        try:
            return self._get(location, deadline)
        finally:
            with self._lock:
                self._flights.pop(location, None)

    def _get(self, location: AtomLocation, deadline: float) -> Fetched:
        tier = Tier.DISK
        data = self._from_disk(location)
        if data is None:
            tier = Tier.DISK if self._storage.is_local else Tier.STORE
            try:
                data = self._store.get(location, deadline)
            except (AtomDamaged, StorageError) as error:
                part = error.code.removeprefix(error.area).lstrip(".")
                return Fetched(None, problem=str(error), error=type(error), code=part)
            if self._disk:
                self._disk.put(_file_name(location), data)
        record = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._memory.put((location.shard, location.start), record)
        return Fetched(record, tier)

    def _from_disk(self, location: AtomLocation) -> bytes | None:
        data = self._disk.get(_file_name(location)) if self._disk else None
        if data is None or not self._disk:
            return None
        if self._store.is_whole(data, location):
            return data
        self._disk.drop(_file_name(location))
        return None

    @cached_property
    def _newest(self) -> Manifest:
        """The current version when it was first asked for."""
        number = current_version(self._storage)
        return self.manifest if number in (None, self.manifest.version) else read_manifest(self._storage, number)

    @cached_property
    def _is_old(self) -> bool:
        return self._newest.version != self.manifest.version

    @cached_property
    def _forgotten(self) -> dict[bytes, int]:
        """Keys of deleted passages, and the last version in which they were: up to that one nothing may be read."""
        if self._newest.forgotten is None:
            return {}
        rows = read_table(self._storage, self._newest.forgotten, FORGOTTEN).to_pylist()
        return {row["key"].to_bytes(8, "big"): row["version"] for row in sorted(rows, key=itemgetter("version"))}


def _wait(flight: Future[Fetched], deadline: float) -> Fetched:
    try:
        return flight.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        return Fetched(None, problem="the store did not give it in time", error=StorageError, code="late")


def _file_name(location: AtomLocation) -> str:
    return f"{location.shard.removesuffix('.safetensors')}-{location.start}.atom"
