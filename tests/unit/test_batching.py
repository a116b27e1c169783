from __future__ import annotations

import asyncio
import threading
import time

import pytest

from serve_app.batching import Batcher


def test_what_arrives_during_a_batch_is_the_next_batch() -> None:
    sizes: list[int] = []

    def process(items: list[int]) -> list[int | Exception]:
        sizes.append(len(items))
        time.sleep(0.05)
        return [item * 2 for item in items]

    async def ask() -> list[int]:
        batcher = Batcher(process, max_size=8, wait_seconds=0)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.02)
        return [await first, *await asyncio.gather(*(batcher.submit(i) for i in range(1, 12)))]

    assert asyncio.run(ask()) == [2 * i for i in range(12)]
    assert sizes == [1, 8, 3]


def test_an_item_that_fails_fails_alone_and_a_batch_that_raises_fails_together() -> None:
    def process(items: list[str]) -> list[str | Exception]:
        if "boom" in items:
            raise RuntimeError("whole batch")
        return [ValueError(item) if item == "bad" else item for item in items]

    async def ask() -> list[object]:
        batcher = Batcher(process, max_size=8, wait_seconds=0.01)
        together = await asyncio.gather(*(batcher.submit(x) for x in ("a", "bad", "b")), return_exceptions=True)
        with pytest.raises(RuntimeError, match="whole batch"):
            await batcher.submit("boom")
        return [*together, await batcher.submit("again")]

    a, bad, b, again = asyncio.run(ask())
    assert (a, b, again) == ("a", "b", "again")
    assert isinstance(bad, ValueError)


def test_a_cancelled_caller_is_left_out() -> None:
    seen: list[int] = []
    gate = threading.Event()

    def process(items: list[int]) -> list[int | Exception]:
        seen.extend(items)
        gate.wait(5)
        return list(items)

    async def ask() -> int:
        batcher = Batcher(process, max_size=4, wait_seconds=0)
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.02)
        second, third = asyncio.create_task(batcher.submit(2)), asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0.02)
        second.cancel()
        gate.set()
        await first
        return await third

    assert asyncio.run(ask()) == 3
    assert seen == [1, 3]
