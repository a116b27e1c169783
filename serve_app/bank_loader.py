"""Deployment: fetch the atoms of the retrieved passages and sum them, so that one vector travels, whatever k is."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from regrad.bank.reader import BankReader, Fetched
from regrad.bank.tiers import MemoryTier
from regrad.errors import BankError, StorageError
from serve_app.config import ServeConfig
from serve_app.messages import GradientSum, LoadRequest, PassageUse, Release, Retrieved
from serve_app.observability.tracing import Watch

T = TypeVar("T")
_OPEN_BANKS = 4
_REFRESH_SECONDS = 1.0
_GRACE_SECONDS = 0.2
_LEAST_SECONDS = 0.05
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
        self,
        retrieved: Retrieved,
        release: Release,
        parts: bool = False,
        seconds: float | None = None,
        traceparent: str = "",
        atoms: bool = True,
    ) -> GradientSum:
        """The sum [P] of the atoms that were had in time, added in float32, sent in bf16; the others say why not.

        Without `atoms` none is read: the uses say only what was deleted, for methods that compute gradients themselves.
        Raises `BankError` if the release's bank is not there or not of its MetaInit, `StorageError` if the store does
        not let it be opened in time.
        """
        started = time.perf_counter()
        deadline = time.monotonic() + self._seconds(seconds)
        reader = await self._reader(release, deadline)
        passages = [hit.passage for hit in retrieved.hits]
        with self._watch.span("load", traceparent, passages=len(passages)), self._used(reader):
            read = reader.fetch if atoms else reader.deletions
            found = await self._in_time(lambda: read(passages, deadline - time.monotonic()), deadline)
            records = [item.record for item in found if item.record is not None]
            total = reader.codec.sum(records)
        for item in found:
            if item.record is not None:
                self._watch.metrics.read(item.tier, item.record.numel())
        return GradientSum(
            total.to(torch.bfloat16),
            reader.manifest.fingerprint,
            reader.manifest.label,
            tuple(_use(passage.id, item) for passage, item in zip(passages, found, strict=True)),
            (time.perf_counter() - started) * 1e3,
            reader.codec.decode(torch.stack(records)).to(torch.bfloat16) if parts and records else None,
        )

    async def many(
        self, retrieved: list[Retrieved | Exception | None], requests: list[LoadRequest | None]
    ) -> list[GradientSum | None]:
        """For each request its sum; None where nothing was asked for. Without its bank it is a sum of nothing."""
        return await asyncio.gather(*map(self._one, retrieved, requests))

    async def _one(self, retrieved: Retrieved | Exception | None, request: LoadRequest | None) -> GradientSum | None:
        if request is None or retrieved is None or isinstance(retrieved, Exception):
            return None
        try:
            return await self.load(
                retrieved, request.release, request.parts, request.seconds, request.traceparent, request.atoms
            )
        except (BankError, StorageError, OSError) as error:
            return nothing(retrieved, request.release, str(error))

    async def check_health(self) -> None:
        """Raises if nothing is done any more, so that Serve replaces the replica; a slow store is no fault."""
        await asyncio.wait_for(asyncio.to_thread(lambda: None), _STALL_SECONDS)

    def _seconds(self, seconds: float | None) -> float:
        most = self._config.tiers.deadline_seconds
        return most if seconds is None else max(_LEAST_SECONDS, min(most, seconds))

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


def nothing(retrieved: Retrieved | None, release: Release, problem: str) -> GradientSum:
    """A sum without a single gradient, for the policy to deal with."""
    uses = tuple(PassageUse(hit.passage.id, problem=problem) for hit in (retrieved.hits if retrieved else ()))
    return GradientSum(torch.zeros(0), release.fingerprint, "", uses, 0.0)


def _use(passage_id: str, item: Fetched) -> PassageUse:
    return PassageUse(passage_id, item.tier, item.problem, deleted=item.deleted)
