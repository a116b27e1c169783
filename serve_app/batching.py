"""Gathering requests into batches: whatever has arrived while one batch was being computed is the next.

Ray Serve's own decorator forms its batches when requests arrive, not when the model becomes free, so that under
load many small ones wait in line; a replica with one model wants the opposite.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Runs `process` in a thread on up to `max_size` items at a time, in the order in which they came.

    `process` returns one result an item; a result that is an exception is raised to that item's caller alone, and
    an exception that `process` raises goes to every caller of its batch. Cancelled callers are left out.
    """

    def __init__(
        self, process: Callable[[list[Item]], list[Result | Exception]], max_size: int, wait_seconds: float
    ) -> None:
        self._process, self._max_size, self._wait_seconds = process, max_size, wait_seconds
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """The item's result, once its batch is done."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._run())
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        await self._waiting.put((item, future))
        return await future

    async def _run(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            if self._waiting.empty() and self._wait_seconds:
                await asyncio.sleep(self._wait_seconds)
            while len(batch) < self._max_size and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await self._answer([(item, future) for item, future in batch if not future.cancelled()])

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        if not batch:
            return
        results: list[Result | Exception]
        try:
            results = await asyncio.to_thread(self._process, [item for item, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
