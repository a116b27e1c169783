"""Deployment: fetch the atoms of the retrieved passages and sum them, so that one vector travels, whatever k is."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from regrad.bank.reader import BankReader
from regrad.bank.tiers import MemoryTier
from regrad.errors import BankError, StorageError
from regrad.methods.atoms import use_of
from serve_app.config import ServeConfig
from serve_app.messages import Ask, BankNeed, GradientSum, Release, Retrieved, RoutedAsk
from serve_app.observability.tracing import Watch

T = TypeVar("T")
_OPEN_BANKS = 4
_REFRESH_SECONDS = 1.0
_GRACE_SECONDS = 0.2
_LEAST_SECONDS = 0.05
_LOAD_FRACTION = 0.5  # of a request's time: the rest is for the answer
_STALL_SECONDS = 30.0


class BankLoaderDeployment:
    """Reads the bank of whatever release a request runs against; releases share the memory tier.

    A request waits for a bank that is slow to open no longer than for an atom. One that is open is looked at anew now
    and then, so that what was deleted meanwhile is known; if the store does not answer, it is used as it is.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._memory = MemoryTier(config.tiers.memory_bytes)
        self._threads = ThreadPoolExecutor(config.bank_loader.max_ongoing_requests, thread_name_prefix="load")
        self._open: OrderedDict[object, tuple[BankReader, float]] = OrderedDict()
        self._opening: dict[object, asyncio.Task[BankReader]] = {}
        self._users: Counter[BankReader] = Counter()
        self._watch = Watch(config.watching, "bank_loader")

    async def load(
        self, routed: Sequence[RoutedAsk], found: Sequence[Retrieved | Exception | None]
    ) -> list[GradientSum | None]:
        """For each request the sum of its passages' atoms; None where none is needed, or there are no passages.

        The atoms that were had in time are summed, the others say why not. Without its bank it is a sum of nothing.
        """
        return await asyncio.gather(*map(self._one, routed, found))

    async def _one(self, routed: RoutedAsk, found: Retrieved | Exception | None) -> GradientSum | None:
        if routed.bank is BankNeed.NOTHING or not isinstance(found, Retrieved):
            return None
        try:
            return await self._sum(routed, found)
        except (BankError, StorageError, OSError) as error:
            return GradientSum.unread(found, routed.release, str(error))

    async def _sum(self, routed: RoutedAsk, retrieved: Retrieved) -> GradientSum:
        """Added in float32, sent in bf16. Raises `BankError` if the release's bank is not there or not of its MetaInit,
        `StorageError` if the store does not let it be opened in time.
        """
        started = time.perf_counter()
        deadline = time.monotonic() + self._seconds(routed.ask)
        reader = await self._reader(routed.release, deadline)
        passages = [hit.passage for hit in retrieved.hits]
        with self._watch.span("load", routed.ask.traceparent, passages=len(passages)), self._used(reader):
            read = reader.deletions if routed.bank is BankNeed.DELETIONS else reader.fetch
            found = await self._in_time(lambda: read(passages, deadline - time.monotonic()), deadline)
            records = [item.record for item in found if item.record is not None]
            total = reader.codec.sum(records)
        for item in found:
            if item.record is not None:
                self._watch.metrics.read(item.tier, item.record.numel())
        parts = routed.bank is BankNeed.PARTS and records
        return GradientSum(
            total.to(torch.bfloat16),
            reader.manifest.fingerprint,
            reader.manifest.label,
            tuple(use_of(passage.id, item) for passage, item in zip(passages, found, strict=True)),
            (time.perf_counter() - started) * 1e3,
            reader.codec.decode(torch.stack(records)).to(torch.bfloat16) if parts else None,
        )

    async def check_health(self) -> None:
        """Raises if nothing is done any more, so that Serve replaces the replica; a slow store is no fault."""
        await asyncio.wait_for(asyncio.to_thread(lambda: None), _STALL_SECONDS)

    def _seconds(self, ask: Ask) -> float:
        return max(_LEAST_SECONDS, min(self._config.tiers.deadline_seconds, _LOAD_FRACTION * ask.seconds))

    async def _in_time(self, work: Callable[[], T], deadline: float) -> T:
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.wait_for(running, max(0.0, deadline - time.monotonic()) + _GRACE_SECONDS)
        except TimeoutError as error:
            raise StorageError("the store did not give it in time") from error

    async def _reader(self, release: Release, deadline: float) -> BankReader:
        reader, opened = self._open.get(release.key, (None, 0.0))
        if reader is not None and time.monotonic() - opened < self._config.follow_seconds:
            return reader
        task = self._opening.get(release.key)
        hangs = task is not None and reader is not None
        if task is None:
            task = self._opening[release.key] = asyncio.create_task(self._refresh(reader, release))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        patience = _REFRESH_SECONDS if reader is not None else deadline - time.monotonic()
        done, _ = await asyncio.wait({task}, timeout=0 if hangs else max(0.0, patience))
        if done:
            return task.result()
        if reader is None:
            raise StorageError("the store did not let the bank be opened in time")
        return reader

    async def _refresh(self, old: BankReader | None, release: Release) -> BankReader:
        try:
            with self._used(old):
                reader = await asyncio.to_thread(self._refreshed, old, release)
                self._open[release.key] = reader, time.monotonic()
            self._open.move_to_end(release.key)
            while len(self._open) > _OPEN_BANKS:
                _, (dropped, _) = self._open.popitem(last=False)
                self._close_unused(dropped)
            return reader
        finally:
            del self._opening[release.key]

    @contextmanager
    def _used(self, reader: BankReader | None) -> Iterator[None]:
        """As long as the block runs the reader stays open, even if another one has taken its place."""
        if reader is None:
            yield
            return
        self._users[reader] += 1
        try:
            yield
        finally:
            self._users[reader] -= 1
            self._close_unused(reader)

    def _close_unused(self, reader: BankReader) -> None:
        if self._users[reader] <= 0:
            del self._users[reader]
            if all(reader is not kept for kept, _ in self._open.values()):
                reader.close()

    def _refreshed(self, reader: BankReader | None, release: Release) -> BankReader:
        if reader is not None and not reader.is_superseded():
            return reader
        return BankReader(release.bank, release.fingerprint, release.bank_version, self._config.tiers, self._memory)
