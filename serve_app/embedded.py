"""Retriever and bank loader inside the gateway's process: one call between processes for an answer instead of three.

The router calls them as it calls deployments. A call returns at once, and what it returns can be awaited more than once
and cancelled, and is handed on un-awaited to the calls that need it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from serve_app.evidence import BankLoaderDeployment, RetrieverDeployment
from serve_app.messages import Retrieved, RoutedAsk


class Embedded:
    """A retriever and a bank loader of this process, and handles of them (see `Router`)."""

    def __init__(self, retriever: RetrieverDeployment, bank_loader: BankLoaderDeployment) -> None:
        self._retriever = retriever
        self._bank_loader = bank_loader
        # One search at a time, as in a replica of its own; the gateway's event loop goes on meanwhile.
        self._searching = ThreadPoolExecutor(1, thread_name_prefix="retrieve")

    def handles(self, generator: Any) -> tuple[Any, Any, Any]:
        """Of the retriever, the bank loader and this generator, a deployment that is called when they have answered."""
        retriever = SimpleNamespace(retrieve=_Here(self._retrieve))
        bank_loader = SimpleNamespace(load=_Here(self._bank_loader.load), open=_Here(self._bank_loader.open))
        answering = {name: _WhenFound(getattr(generator, name)) for name in ("answer", "stream")}
        return retriever, bank_loader, SimpleNamespace(**answering)

    async def check_health(self) -> None:
        """Raises if one of the two does not answer any more."""
        await self._in_thread(self._retriever.check_health)
        await self._bank_loader.check_health()

    async def _retrieve(self, routed: Sequence[RoutedAsk]) -> list[Retrieved | Exception | None]:
        found: list[Retrieved | Exception | None] = await self._in_thread(self._retriever.retrieve, routed)
        return found

    async def _in_thread(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._searching, work, *given)


class _Here:
    """A method of this process, called as a deployment's: what it is given un-awaited is awaited first."""

    def __init__(self, work: Callable[..., Awaitable[Any]]) -> None:
        self._work = work

    def remote(self, *given: Any) -> asyncio.Task[Any]:
        async def call() -> Any:
            return await self._work(*await _awaited(given))

        task = asyncio.create_task(call())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # else asyncio logs it as unseen
        return task


class _WhenFound:
    """A deployment's streaming method, called when what it is to be given was found in this process."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def remote(self, *given: Any) -> _Answers:
        return _Answers(self._method, given)


class _Answers:
    """What such a call gives: an async iterable that can be cancelled."""

    def __init__(self, method: Any, given: Sequence[Any]) -> None:
        self._method, self._given = method, given
        self._response: Any = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        self._response = self._method.remote(*await _awaited(self._given))
        async for item in self._response:
            yield item

    def cancel(self) -> None:
        """Stop the call; one that was not begun is not begun by this."""
        if self._response is not None:
            self._response.cancel()


async def _awaited(given: Sequence[Any]) -> list[Any]:
    return [await each if isinstance(each, asyncio.Task) else each for each in given]
