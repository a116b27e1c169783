"""Where atoms are had from: memory, disk or store; what fails, is late or was deleted is said."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regrad.bank.config import TiersConfig
from regrad.bank.reader import BankReader, Fetched
from regrad.bank.tiers import DiskTier, MemoryTier
from regrad.errors import AtomDamaged, BankError, StorageError
from regrad.storage import Storage
from tests.tools.banks import FLOAT32, PASSAGES, atoms, fill
from tests.tools.patience import Deadline
from tests.tools.refusals import refused

RECORD = FLOAT32.record_bytes


@pytest.fixture
def remote(request: pytest.FixtureRequest) -> str:
    """A bank that is not on a local file system."""
    uri = f"memory://{request.node.name}"
    Storage(uri).remove()
    fill(uri)
    return uri


class Store:
    """Stands in for what a reader reads shards with: counts, waits, fails."""

    def __init__(self, reader: BankReader, failures: int = 0, seconds: float = 0.0, flip: int = 0) -> None:
        self.reads, self.at_once, self.most = 0, 0, 0
        self.failures, self.seconds, self.flip = failures, seconds, flip
        self.wait: Callable[[float], object] = time.sleep
        self._lock, self._real = threading.Lock(), reader._storage.read
        reader._storage.read = self.read  # type: ignore[method-assign]

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        if not name.startswith("shards/"):
            return self._real(name, start, end)
        with self._lock:
            self.reads += 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.wait(self.seconds)
        with self._lock:
            self.at_once -= 1
            self.failures, self.flip, fails, flips = self.failures - 1, self.flip - 1, self.failures > 0, self.flip > 0
        if fails:
            raise StorageError("the line is cut")
        data = self._real(name, start, end)
        return bytes([data[0] ^ 1]) + data[1:] if flips else data


def test_atoms_come_from_the_nearest_tier(remote: str, tmp_path: Path) -> None:
    tiers = TiersConfig(disk=str(tmp_path / "cache"))
    reader = BankReader(remote, tiers=tiers)
    store = Store(reader)
    assert [item.tier for item in reader.fetch(["p0", "p1"])] == ["store", "store"]
    assert [item.tier for item in reader.fetch(["p1", "p2"])] == ["memory", "store"]
    assert store.reads == 3
    again = BankReader(remote, tiers=tiers)
    assert [item.tier for item in again.fetch(["p0", "p3"])] == ["disk", "store"]
    assert again.read(["p0", "p3"]).equal(atoms()[[0, 3]])


def threads_of_banks() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("bank")}


def test_a_closed_reader_holds_no_threads_and_gives_what_was_being_fetched(remote: str) -> None:
    before = threads_of_banks()
    with BankReader(remote, tiers=TiersConfig(parallel_reads=1)) as reader:
        Store(reader, seconds=0.05)
        flights = [reader._start(f"p{i}", time.monotonic() + 600) for i in range(3)]
        own = threads_of_banks() - before
        assert own
    assert [flight.result().tier for flight in flights if not isinstance(flight, Fetched)] == ["store"] * 3
    for thread in own:
        thread.join()
    for ask in (reader.fetch, reader.read, reader.deletions):
        with refused(BankError, "closed"):
            ask(["p5"])
    reader.close()


def test_a_closed_reader_holds_no_file(tmp_path: Path) -> None:
    fill(str(tmp_path))
    with BankReader(str(tmp_path)) as reader:
        reader.read(["p0"])
        mapped = reader._catalog._mapped
        assert mapped
    assert all(each._map.closed for each in mapped)
    with refused(BankError, "closed"):
        reader.read(["p0"])


def test_a_cache_that_was_damaged_or_taken_away_costs_a_fetch(remote: str, tmp_path: Path) -> None:
    tiers = TiersConfig(disk=str(tmp_path / "cache"), memory_bytes=0)
    BankReader(remote, tiers=tiers).read(["p0", "p1"])
    files = sorted((tmp_path / "cache").iterdir())
    files[0].write_bytes(b"x" * RECORD)
    files[1].write_bytes(b"short")
    reader = BankReader(remote, tiers=tiers)
    assert [item.tier for item in reader.fetch(["p0", "p1"])] == ["store", "store"]
    assert [item.tier for item in reader.fetch(["p0", "p1"])] == ["disk", "disk"]
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    assert reader.read(["p0", "p1"]).equal(atoms()[:2])


def test_a_disk_that_cannot_be_written_to_costs_only_time(remote: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    reader = BankReader(remote, tiers=TiersConfig(disk=str(tmp_path / "file"), memory_bytes=0))
    assert reader.read(["p0"]).equal(atoms()[:1])


def test_memory_and_disk_hold_as_many_bytes_as_allowed_and_drop_the_oldest(tmp_path: Path) -> None:
    memory = MemoryTier(3 * RECORD)
    for i in range(5):
        memory.put(i, torch.full((RECORD,), i, dtype=torch.uint8))
        memory.get(0)
    assert memory.bytes == 3 * RECORD
    assert [i for i in range(5) if memory.get(i) is not None] == [0, 3, 4]
    memory.put("large", torch.zeros(4 * RECORD, dtype=torch.uint8))
    assert memory.get("large") is None
    disk = DiskTier(str(tmp_path), 250)
    for i in range(4):
        disk.put(f"{i}.atom", bytes(100))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.atom", "3.atom"]
    assert DiskTier(str(tmp_path), 120).get("2.atom") is None


def test_a_store_that_stumbles_is_asked_again(remote: str) -> None:
    reader = BankReader(remote, tiers=TiersConfig(backoff_seconds=0.01))
    store = Store(reader, failures=3)
    assert reader.read(["p5"]).equal(atoms()[5:6])
    assert store.reads == 4


def test_a_store_that_is_away_is_given_up_at_the_deadline(remote: str) -> None:
    reader = BankReader(remote, tiers=TiersConfig(deadline_seconds=0.3, backoff_seconds=0.01))
    Store(reader, failures=10**6)
    deadline = Deadline(3)
    with refused(StorageError, passage_id="p5"):
        reader.read(["p5"])
    assert not deadline.over


def test_a_store_that_forbids_it_is_not_asked_again(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = BankReader(remote, tiers=TiersConfig(deadline_seconds=30))
    real, reads = reader._storage.fs.cat_file, []

    def forbid(path: str, start: int | None = None, end: int | None = None) -> bytes:
        if "/shards/" not in path:
            return bytes(real(path, start=start, end=end))
        reads.append(path)
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(reader._storage.fs, "cat_file", forbid)
    with refused(StorageError, "refused", passage_id="p5"):
        reader.read(["p5"])
    assert len(reads) == 1


def test_a_store_that_hangs_does_not_hold_the_question(remote: str) -> None:
    reader = BankReader(remote)
    store, given = Store(reader), threading.Event()
    store.wait = lambda seconds: given.wait()
    (found,) = reader.fetch(["p5"], seconds=0.2)
    assert (found.record, found.problem) == (None, "the store did not give it in time")
    given.set()


def test_a_bad_transfer_is_fetched_again_and_a_bad_atom_is_reported(remote: str) -> None:
    reader = BankReader(remote, tiers=TiersConfig(memory_bytes=0))
    store = Store(reader, flip=1)
    assert reader.read(["p5"]).equal(atoms()[5:6])
    store.flip = 100
    with refused(AtomDamaged, passage_id="p5"):
        reader.read(["p5"])


def test_one_atom_is_fetched_once_however_many_want_it(remote: str) -> None:
    reader = BankReader(remote)
    store = Store(reader, seconds=0.3)
    results: list[Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(reader.read(["p2"]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (store.reads, len(results)) == (1, 8)
    assert all(result.equal(atoms()[2:3]) for result in results)


def test_bytes_in_flight_are_bounded(remote: str) -> None:
    reader = BankReader(remote, tiers=TiersConfig(inflight_bytes=2 * RECORD + 1))
    store = Store(reader, seconds=0.05)
    reader.read([passage.id for passage in PASSAGES])
    assert (store.reads, store.most) == (7, 2)
