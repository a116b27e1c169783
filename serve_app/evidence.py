"""Deployments: what an answer rests on. One searches for passages; one fetches the passages' atoms and sums them.

One vector travels from here to the generator, however many passages there are.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from regrad.bank.reader import BankReader
from regrad.bank.tiers import MemoryTier
from regrad.errors import BankError, RegradError, StorageError
from regrad.methods.base import BankNeed
from regrad.methods.policies import use_of
from regrad.retrieval.base import Retriever, open_retriever
from regrad.retrieval.hits import Hit
from serve_app.config import ServeConfig
from serve_app.messages import Ask, GradientSum, Release, Retrieved, RoutedAsk
from serve_app.observability import InHand, Watch
from serve_app.rollout import opened_ahead

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
_OPEN_BANKS = 4
_REFRESH_SECONDS = 1.0  # longer than this, a refresh of an open bank goes on behind the requests
_GRACE_SECONDS = 0.2  # for what the reader itself gives up at its deadline
_LEAST_SECONDS = 0.05
_LOAD_FRACTION = 0.5  # of a request's time: the rest is for the answer
_STALL_SECONDS = 30.0


class IndexVersions:
    """The newest version of an index that could be opened; `seconds` pass between two looks for a newer one.

    A thread of its own looks and opens, so no request waits for it: the older version answers meanwhile. A request
    has one version from its beginning to its end (`pinned`); one that was replaced is closed when the last request that
    has it is done. If the store does not answer, the version that is open is used.
    """

    def __init__(self, retriever: Retriever, seconds: float) -> None:
        self._newest = retriever
        self._users: Counter[Retriever] = Counter()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(seconds,), name="index-versions", daemon=True)
        self._thread.start()

    @contextmanager
    def pinned(self) -> Iterator[Retriever]:
        """The newest version; it stays open inside the block, even if a newer one takes its place."""
        with self._lock:
            retriever = self._newest
            self._users[retriever] += 1
        try:
            yield retriever
        finally:
            with self._lock:
                self._users[retriever] -= 1
                was_last = not self._users[retriever]
                if was_last:
                    del self._users[retriever]
                replaced = retriever is not self._newest
            # Either this or `_look` closes it: whoever sees, under the lock, that it is both replaced and unused.
            if was_last and replaced:
                retriever.retire()

    def close(self) -> None:
        """Look no more, and close the version that is open."""
        self._ended.set()
        self._thread.join()
        self._newest.close()

    def _follow(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            try:
                self._look()
            except Exception as error:  # of whatever kind: a thread that ended here would never look again
                logger.warning("the index cannot be checked for changes, and is used as it is: %s", error)

    def _look(self) -> None:
        newer = self._newest.newest()
        if newer is self._newest:
            return
        with self._lock:
            old, self._newest = self._newest, newer
            unused = old not in self._users
        if unused:
            old.retire()


class RetrieverDeployment:
    """Searches an index of any kind; for BM25 each replica has a JVM. A collection's changes are followed."""

    def __init__(self, config: ServeConfig) -> None:
        self.index = IndexVersions(open_retriever(config.index, config.retrieval), config.follow_seconds)
        self._watch = Watch(config.watching, "retriever")
        self._in_hand = InHand()

    def check_health(self) -> None:
        """Raises if the index does not answer, so that Serve replaces the replica."""
        with self.index.pinned() as retriever:
            retriever.search(["health"], 1)

    def retrieve(self, routed: Sequence[RoutedAsk]) -> list[Retrieved | Exception | None]:
        """For each request its passages, or why there are none; None where the method looks at none."""
        # One version of the index for all of them.
        with self._in_hand.call(len(routed)), self.index.pinned() as retriever:
            return [self._retrieve_one(each.ask, retriever) if each.retrieves else None for each in routed]

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve asks a replica for: see `replicas_for_questions`."""
        return self._in_hand.averages()

    def _retrieve_one(self, ask: Ask, retriever: Retriever) -> Retrieved | Exception:
        """The k best passages, or those that the caller named, in the caller's order."""
        # Errors are values here: those of one request must not fail the others of its micro-batch.
        started = time.perf_counter()
        named = ask.passage_ids
        try:
            with self._watch.span("retrieve", ask.traceparent, k=ask.k if named is None else len(named)):
                if named is None:
                    (hits,) = retriever.search([ask.query], ask.k)
                else:
                    hits = [Hit(passage, 0.0) for passage in retriever.passages(named)]
        except RegradError as error:
            return error
        milliseconds = (time.perf_counter() - started) * 1e3
        return Retrieved(tuple(hits), milliseconds, retriever.bank, retriever.temperature)


class BankLoaderDeployment:
    """Reads the bank of the release that a request runs against; releases share the memory tier.

    Those of the current releases are open before the first request. A request waits for a bank that is slow to open no
    longer than for an atom. An open bank is refreshed every `follow_seconds`, so that deletions take effect; if the
    store does not answer, it is used as it is.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._memory = MemoryTier(config.tiers.memory_bytes)
        self._threads = ThreadPoolExecutor(config.bank_loader.max_ongoing_requests, thread_name_prefix="load")
        self._open: OrderedDict[object, tuple[BankReader, float]] = OrderedDict()
        self._opening: dict[object, asyncio.Task[BankReader]] = {}
        self._users: Counter[BankReader] = Counter()
        self._watch = Watch(config.watching, "bank_loader")
        self._in_hand = InHand()
        opened_ahead(config, self._open_now)

    async def load(
        self, routed: Sequence[RoutedAsk], found: Sequence[Retrieved | Exception | None]
    ) -> list[GradientSum | None]:
        """For each request the sum of its passages' atoms; None where none is needed, or there are no passages.

        The atoms that came in time are summed, the others say why not. Without its bank it is a sum of nothing.
        """

        async def load_one(each: RoutedAsk, passages: Retrieved | Exception | None) -> GradientSum | None:
            if each.bank is BankNeed.NOTHING or not isinstance(passages, Retrieved):
                return None
            try:
                return await self._sum(each, passages)
            except (BankError, StorageError, OSError) as error:
                return GradientSum.unread(passages, each.release, str(error))

        with self._in_hand.call(len(routed)):
            return await asyncio.gather(*map(load_one, routed, found))

    async def open(self, releases: Sequence[Release]) -> None:
        """Open the banks of these, before a request comes; raises `BankError` or `StorageError`."""
        for release in releases:
            await self._reader(release, time.monotonic() + _STALL_SECONDS)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve asks a replica for: see `replicas_for_questions`."""
        return self._in_hand.averages()

    async def _sum(self, routed: RoutedAsk, retrieved: Retrieved) -> GradientSum:
        """Added in float32, sent in bf16.

        Raises `BankError` if the release's bank is missing or not of its MetaInit, `StorageError` if the store does
        not let it be opened in time.
        """
        started = time.perf_counter()
        most = min(self._config.tiers.deadline_seconds, _LOAD_FRACTION * routed.ask.seconds)
        deadline = time.monotonic() + max(_LEAST_SECONDS, most)
        reader = await self._reader_beside(routed.release, retrieved, deadline)
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
            reader.label,
            tuple(use_of(passage.id, item) for passage, item in zip(passages, found, strict=True)),
            (time.perf_counter() - started) * 1e3,
            reader.codec.decode(torch.stack(records)).to(torch.bfloat16) if parts else None,
        )

    async def check_health(self) -> None:
        """Raises if no thread of the process works any more, so that Serve replaces the replica.

        It does not read: a slow store is no fault of the replica's.
        """
        await asyncio.wait_for(asyncio.to_thread(lambda: None), _STALL_SECONDS)

    async def _in_time(self, work: Callable[[], Found], deadline: float) -> Found:
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.wait_for(running, max(0.0, deadline - time.monotonic()) + _GRACE_SECONDS)
        except TimeoutError as error:
            raise StorageError("the store did not deliver the gradients in time", code="too_slow") from error

    async def _reader_beside(self, release: Release, retrieved: Retrieved, deadline: float) -> BankReader:
        """The version that goes with the index that was searched; the release's own if that one is gone."""
        beside = release.beside(retrieved.bank)
        if beside.bank_version == release.bank_version:
            return await self._reader(release, deadline)
        try:
            return await self._reader(beside, deadline)
        except BankError as error:
            logger.warning("the bank's version of the index cannot be opened, the newest is used: %s", error)
            return await self._reader(release, deadline)

    async def _reader(self, release: Release, deadline: float) -> BankReader:
        """The release's bank: the open one if it is fresh, or if a newer one cannot be opened in time."""
        reader, opened = self._open.get(release.key, (None, 0.0))
        if reader is not None and time.monotonic() - opened < self._config.follow_seconds:
            return reader
        # One task a bank opens it for all requests; it goes on when they have given up.
        task = self._opening.get(release.key)
        another_waits = task is not None
        if task is None:
            task = self._opening[release.key] = asyncio.create_task(self._refresh(reader, release))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # else asyncio logs it as unseen
        patience = deadline - time.monotonic()
        if reader is not None:  # only the first request waits for a slow refresh, the others take what is open
            patience = 0.0 if another_waits else _REFRESH_SECONDS
        done, _ = await asyncio.wait({task}, timeout=max(0.0, patience))
        if done:
            return task.result()
        if reader is None:
            raise StorageError("the store did not let the bank be opened in time", code="too_slow", uri=release.bank)
        return reader

    def _open_now(self, release: Release) -> None:
        self._open[release.key] = self._newest(None, release), time.monotonic()

    async def _refresh(self, old: BankReader | None, release: Release) -> BankReader:
        try:
            with self._used(old):
                reader = await asyncio.to_thread(self._newest, old, release)
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
        """The reader stays open inside the block, even if a newer one has taken its place."""
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

    def _newest(self, reader: BankReader | None, release: Release) -> BankReader:
        if reader is not None and not reader.is_superseded():
            return reader
        opened = BankReader(release.bank, release.fingerprint, release.bank_version, self._config.tiers, self._memory)
        opened.prepare()
        return opened
