"""The sum of a question's atoms, wherever they are best had from: fetched, computed now (ReGrad Online), or mixed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from regrad.bank.builder import Extract
from regrad.bank.config import SourceConfig
from regrad.bank.reader import BankReader, Fetched
from regrad.bank.tiers import MemoryTier
from regrad.bank.writer import BankWriter
from regrad.data.passages import Passage
from regrad.errors import RegradError

_WEIGHT = 0.2
_TRY_AGAIN = 50


class Costs:
    """Milliseconds an atom fetched, and a character of a passage computed, as moving averages. Safe for threads.

    Both sides are tried once before they are compared. The one that loses is tried again now and then, since caches
    fill and stores recover.
    """

    def __init__(self) -> None:
        self._fetch: float | None = None
        self._compute: float | None = None
        self._asked = 0
        self._lock = threading.Lock()

    def fetched(self, atoms: int, milliseconds: float) -> None:
        """So many atoms were fetched together in this time."""
        with self._lock:
            self._fetch = _average(self._fetch, milliseconds / max(1, atoms))

    def computed(self, characters: int, milliseconds: float) -> None:
        """Passages of so many characters were computed together in this time."""
        with self._lock:
            self._compute = _average(self._compute, milliseconds / max(1, characters))

    def prefers_computing(self, characters: int) -> bool:
        """Whether a passage of this length, which is not in memory, is had sooner by computing it."""
        with self._lock:
            self._asked += 1
            if self._fetch is None or self._compute is None:
                return self._compute is None and self._fetch is not None
            cheaper = self._compute * characters < self._fetch
            return not cheaper if self._asked % _TRY_AGAIN == 0 else cheaper

    def measured(self) -> dict[str, float | None]:
        """The averages as they are now."""
        return {"fetch_ms_per_atom": self._fetch, "compute_ms_per_character": self._compute}


def _average(before: float | None, now: float) -> float:
    return now if before is None else (1 - _WEIGHT) * before + _WEIGHT * now


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gathered:
    """The sum [P] float32 of the atoms that were had, the tier of each passage in order, and why some have none."""

    total: Tensor
    tiers: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]


class AtomSource:
    """Atoms of one bank, with `extract` (passages to records) for those that it has not, or that are slow to fetch.

    Policies: `cached` computes what is absent, damaged, late or of another text; `online` computes everything;
    `cheapest` computes what is not in memory if that has been faster so far. Without `extract` nothing is computed, and
    never a passage that was deleted from the bank. What was computed is kept in memory and, with `write_back`, added
    to the bank in the background. Safe for threads.
    """

    def __init__(self, reader: BankReader, config: SourceConfig, extract: Extract | None = None) -> None:
        self._reader, self._config, self._extract = reader, config, extract
        self.costs = Costs()
        self._computed = MemoryTier(config.online_memory_bytes)
        self._fetching = ThreadPoolExecutor(4, thread_name_prefix="fetch")
        self._write_back = WriteBack(reader, config) if config.write_back else None

    def sum(self, passages: Sequence[Passage], seconds: float | None = None) -> Gathered:
        """The sum of the passages' atoms by the deadline (the reader's by default) and where they came from."""
        found: dict[int, Fetched] = {i: item for i, p in enumerate(passages) if (item := self._at_hand(p))}
        rest = [i for i in range(len(passages)) if i not in found]
        online = [i for i in rest if self._computes_first(passages[i])]
        fetched = [i for i in rest if i not in online]
        waiting = self._fetching.submit(self._fetch, [passages[i] for i in fetched], seconds)
        found.update(zip(online, self._compute([passages[i] for i in online]), strict=True))
        found.update(zip(fetched, waiting.result(), strict=True))
        absent = [i for i, item in found.items() if item.record is None and not item.deleted and i not in online]
        if self._extract and absent:
            found.update(zip(absent, self._compute([passages[i] for i in absent]), strict=True))
        return self._sum([(passages[i], found[i]) for i in range(len(passages))])

    def close(self) -> None:
        """Write back what is waiting."""
        if self._write_back:
            self._write_back.flush()

    def _sum(self, found: Sequence[tuple[Passage, Fetched]]) -> Gathered:
        records = [item.record for _, item in found if item.record is not None]
        total = self._reader.codec.add_decoded(records, torch.zeros(self._reader.manifest.size))
        problems = tuple((passage.id, item.problem) for passage, item in found if item.record is None)
        return Gathered(total, tuple(item.tier for _, item in found), problems)

    def _at_hand(self, passage: Passage) -> Fetched | None:
        """What needs neither a fetch nor a computation."""
        record = self._computed.get((passage.id, passage.text_hash))
        if record is not None and not self._reader.was_deleted(passage.id):
            return Fetched(record, "computed")
        return self._reader.in_memory(passage) if self._config.policy != "online" else None

    def _computes_first(self, passage: Passage) -> bool:
        if self._extract is None or self._config.policy == "cached" or self._reader.was_deleted(passage.id):
            return False
        return self._config.policy == "online" or self.costs.prefers_computing(_length(passage))

    def _fetch(self, passages: Sequence[Passage], seconds: float | None) -> list[Fetched]:
        if not passages:
            return []
        started = time.perf_counter()
        found = self._reader.fetch(passages, seconds)
        self.costs.fetched(len(passages), (time.perf_counter() - started) * 1e3)
        return found

    def _compute(self, passages: Sequence[Passage]) -> list[Fetched]:
        if not passages or self._extract is None:
            return []
        started = time.perf_counter()
        outcomes = self._extract(passages)
        self.costs.computed(sum(map(_length, passages)), (time.perf_counter() - started) * 1e3)
        for passage, (record, _) in zip(passages, outcomes, strict=True):
            if record is not None:
                self._computed.put((passage.id, passage.text_hash), record)
                if self._write_back:
                    self._write_back.add(passage, record)
        return [Fetched(record, "online" if record is not None else "", problem) for record, problem in outcomes]


class WriteBack:
    """Collects computed records and adds them to the bank, many in one commit, without keeping anybody waiting.

    What cannot be written is said in the log and dropped: it can be computed again.
    """

    def __init__(self, reader: BankReader, config: SourceConfig) -> None:
        self._most = config.write_back_passages
        self._uri, self._layout = reader.uri, reader.manifest.layout
        self._waiting: dict[str, tuple[Passage, Tensor]] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write-back")

    def add(self, passage: Passage, record: Tensor) -> None:
        """Take one record; when there are enough of them they are committed."""
        with self._lock:
            self._waiting[passage.id] = (passage, record)
            full = len(self._waiting) >= self._most
        if full:
            self._thread.submit(self._commit)

    def flush(self) -> None:
        """Commit what is waiting, and wait for it."""
        self._thread.submit(self._commit).result()

    def _commit(self) -> None:
        with self._lock:
            batch, self._waiting = list(self._waiting.values()), {}
        if not batch:
            return
        try:
            writer = BankWriter(self._uri, self._layout)
            for passage, record in batch:
                writer.add_record(passage.id, passage.text_hash, record)
            logger.info("wrote %d computed atoms back: version %s", len(batch), writer.commit(spare_deleted=True).label)
        except RegradError as error:
            logger.warning("%d computed atoms could not be written back: %s", len(batch), error)


def _length(passage: Passage) -> int:
    return len(passage.title) + len(passage.text)
