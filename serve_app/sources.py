"""Where passages and sums come from: deployments of their own, or objects inside the gateway's process.

Both are called alike: a call returns at once, and what it returns can be awaited more than once and cancelled, and is
handed on un-awaited to the calls that need it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.config import ServeConfig
from serve_app.evidence import BankLoaderDeployment, RetrieverDeployment
from serve_app.messages import GradientSum, Retrieved, RoutedAsk


class Sources(ABC):
    """What the router asks for passages and sums, and how these get to the generator."""

    needed: tuple[str, ...]
    """The deployments that must have a replica."""

    @abstractmethod
    def retrieve(self, routed: Sequence[RoutedAsk]) -> Any:
        """The passages of each request (see `RetrieverDeployment.retrieve`)."""

    @abstractmethod
    def load(self, routed: Sequence[RoutedAsk], retrieved: Any) -> Any:
        """The sum of each request (see `BankLoaderDeployment.load`), from what `retrieve` returned."""

    @abstractmethod
    def generate(self, method: Any, routed: Sequence[RoutedAsk], retrieved: Any, gradients: Any) -> Any:
        """A call of the generator's streaming method: an async iterable that can be cancelled."""

    @abstractmethod
    async def check_health(self) -> None:
        """Raises if something of this process does not answer any more."""


class Deployments(Sources):
    """Replicas of their own, which scale on their own. What they find does not pass through the gateway."""

    needed = ("retriever", "bank_loader", "generator")

    def __init__(self, retriever: DeploymentHandle, bank_loader: DeploymentHandle) -> None:
        self._retriever = retriever
        self._bank_loader = bank_loader

    def retrieve(self, routed: Sequence[RoutedAsk]) -> Any:
        """See `Sources`."""
        return self._retriever.retrieve.remote(routed)

    def load(self, routed: Sequence[RoutedAsk], retrieved: Any) -> Any:
        """See `Sources`."""
        return self._bank_loader.load.remote(routed, retrieved)

    def generate(self, method: Any, routed: Sequence[RoutedAsk], retrieved: Any, gradients: Any) -> Any:
        """See `Sources`."""
        return method.remote(routed, retrieved, gradients)

    async def check_health(self) -> None:
        """Nothing is of this process: Serve checks the replicas themselves."""


class Embedded(Sources):
    """Retriever and bank loader in this process: one call between processes for an answer instead of three."""

    needed = ("generator",)

    def __init__(self, retriever: RetrieverDeployment, bank_loader: BankLoaderDeployment) -> None:
        self._retriever = retriever
        self._bank_loader = bank_loader
        # One search at a time, as in a replica of its own; the gateway's event loop goes on meanwhile.
        self._searching = ThreadPoolExecutor(1, thread_name_prefix="retrieve")

    def retrieve(self, routed: Sequence[RoutedAsk]) -> asyncio.Task[Any]:
        """See `Sources`."""
        return _task(self._in_thread(partial(self._retriever.retrieve, routed)))

    def load(self, routed: Sequence[RoutedAsk], retrieved: asyncio.Task[Any]) -> asyncio.Task[Any]:
        """See `Sources`."""

        async def load() -> list[GradientSum | None]:
            found: Sequence[Retrieved | Exception | None] = await retrieved
            return await self._bank_loader.load(routed, found)

        return _task(load())

    def generate(self, method: Any, routed: Sequence[RoutedAsk], retrieved: Any, gradients: Any) -> WhenFound:
        """See `Sources`."""
        return WhenFound(method, routed, (retrieved, gradients))

    async def check_health(self) -> None:
        """See `Sources`."""
        await self._in_thread(self._retriever.check_health)
        await self._bank_loader.check_health()

    async def _in_thread(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._searching, work)


class WhenFound:
    """A streaming call that begins when what it is to be given was found in this process."""

    def __init__(self, method: Any, routed: Sequence[RoutedAsk], found: Sequence[asyncio.Task[Any] | None]) -> None:
        self._method, self._routed, self._found = method, routed, found
        self._response: Any = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        given = [None if each is None else await each for each in self._found]
        self._response = self._method.remote(self._routed, *given)
        async for item in self._response:
            yield item

    def cancel(self) -> None:
        """Stop the call; one that was not begun is not begun by this."""
        if self._response is not None:
            self._response.cancel()


def _task(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # else asyncio logs it as unseen
    return task


def open_sources(
    config: ServeConfig, retriever: DeploymentHandle | None, bank_loader: DeploymentHandle | None
) -> Sources:
    """The deployments, if there are any, else the same in this process."""
    if retriever is None or bank_loader is None:
        return Embedded(RetrieverDeployment(config), BankLoaderDeployment(config))
    return Deployments(retriever, bank_loader)
