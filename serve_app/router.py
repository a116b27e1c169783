"""A question's way: admitted, given a release, answered by three calls, and asked again when a replica has died.

The three calls take and give lists, so one request and a micro-batch of several are answered by the same lines. Each
call gets the responses of the ones before un-awaited: sums do not pass through the gateway.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.config import ServeConfig
from serve_app.messages import Ask, BankNeed, Event, Piece, Reply, Retrieved, RoutedAsk
from serve_app.microbatch import Microbatches
from serve_app.offers import offers_of
from serve_app.rollout import Follower

GONE = (RayActorError, ObjectLostError, DeploymentUnavailableError)
"""What says that a replica died; another one may be asked."""


class _LoaderGone(Exception):
    """The bank loader's replica died: if that happens every time, the generator is asked without it."""


_TRIES = 3
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class _Calls:
    """The calls under way for these requests: responses of Serve, None where no request needs the deployment."""

    routed: Sequence[RoutedAsk]
    retrieved: Any
    gradients: Any
    answers: Any

    async def passages(self) -> Sequence[Retrieved | Exception | None]:
        """What the retriever found for each request."""
        return [None] * len(self.routed) if self.retrieved is None else await self.retrieved

    async def cause(self, error: Exception) -> Exception:
        """The failure that is behind an error of the last call: that of the first call that failed."""
        for response in (self.retrieved, self.gradients):
            try:
                if response is not None:
                    await response
            except GONE as failure:
                return _LoaderGone() if response is self.gradients else failure
            except Exception as failure:
                return failure
        return error

    def cancel(self) -> None:
        """Stop what nobody waits for any more; of a call that is over, nothing."""
        for response in (self.answers, self.gradients, self.retrieved):
            if response is not None:
                response.cancel()


class Router:
    """Takes questions through retriever, bank loader and generator, each under one release from end to end."""

    def __init__(
        self,
        config: ServeConfig,
        follower: Follower,
        retriever: DeploymentHandle,
        bank_loader: DeploymentHandle,
        generator: DeploymentHandle,
    ) -> None:
        self._max_in_flight, self._in_flight = config.limits.max_in_flight, 0
        self._offers, self._follower = offers_of(config), follower
        self._retriever, self._bank_loader = retriever, bank_loader
        self._generator = generator.options(stream=True)
        self._microbatches = Microbatches(config.groups, self._together)

    @property
    def full(self) -> bool:
        """Whether as many requests are in flight as the limits let in."""
        return self._in_flight >= self._max_in_flight

    async def answer(self, ask: Ask) -> Reply:
        """The whole answer. Raises `BackPressureError` if the router is full, and what the deployments raise."""
        started = time.perf_counter()
        with self._admitted():
            routed = self._routed(ask)
            reply = await self._microbatches.answer(routed) or await self._alone(routed)
        return replace(reply, total_milliseconds=(time.perf_counter() - started) * 1e3)

    async def stream(self, ask: Ask) -> AsyncGenerator[Event]:
        """The passages, the text as it comes, the whole answer. Raises as `answer`."""
        started = time.perf_counter()
        with self._admitted():
            async with aclosing(self._tried(self._routed(ask), streams=True)) as events:
                async for event in events:
                    if isinstance(event, Reply):
                        event = replace(event, total_milliseconds=(time.perf_counter() - started) * 1e3)
                    yield event

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self.full:
            raise BackPressureError(num_queued_requests=self._in_flight, max_queued_requests=self._in_flight)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _routed(self, ask: Ask) -> RoutedAsk:
        return self._offers[ask.method].routed(ask, self._follower.pick(ask))

    def _begin(self, routed: Sequence[RoutedAsk], streams: bool = False, asks_bank: bool = True) -> _Calls:
        """Begin the calls that these requests need."""
        retrieves = any(each.retrieves for each in routed)
        retrieved = self._retriever.retrieve.remote(routed) if retrieves else None
        loads = asks_bank and any(each.bank is not BankNeed.NOTHING for each in routed)
        gradients = self._bank_loader.load.remote(routed, retrieved) if loads else None
        call = self._generator.stream if streams else self._generator.answer
        return _Calls(routed, retrieved, gradients, call.remote(routed, retrieved, gradients))

    async def _together(
        self, routed: Sequence[RoutedAsk], searched: Callable[[], None]
    ) -> AsyncGenerator[tuple[int, Reply | Exception]]:
        """The answers of a micro-batch by the numbers of its requests, as they are done; see `Microbatches`."""
        calls = self._begin(routed)
        try:
            async for number, reply in self._replies(calls, searched):
                yield number, reply
        finally:
            calls.cancel()

    async def _alone(self, routed: RoutedAsk) -> Reply:
        async with aclosing(self._tried(routed, streams=False)) as events:
            async for event in events:
                if isinstance(event, Reply):
                    return event
        raise AssertionError("the events of an answer end with the reply")

    async def _tried(self, routed: RoutedAsk, streams: bool) -> AsyncGenerator[Event]:
        """The events of one request that goes alone: the passages and pieces of a stream, and the reply.

        Answering changes nothing, so when a replica died another is asked, as long as no text is out. If there is no
        bank loader to be had, the generator does without, by the method's policy.
        """
        tries, begun = 0, False
        while True:
            calls = self._begin([routed], streams, asks_bank=tries < _TRIES)
            try:
                async with aclosing(self._pieces(calls) if streams else self._whole(calls)) as events:
                    async for event in events:
                        begun = begun or isinstance(event, Piece)
                        yield event
                return
            except Exception as error:
                if begun:
                    raise
                tries += 1
                cause = await calls.cause(error)
                # The last time a dead loader is not asked, so this ends.
                if not (isinstance(cause, _LoaderGone) or (isinstance(cause, GONE) and tries < _TRIES)):
                    raise cause from None
            finally:
                calls.cancel()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _whole(self, calls: _Calls) -> AsyncGenerator[Event]:
        async for _, reply in self._replies(calls):
            if isinstance(reply, Exception):
                raise reply
            yield reply

    async def _pieces(self, calls: _Calls) -> AsyncGenerator[Event]:
        (retrieved,) = await calls.passages()
        if isinstance(retrieved, Exception):
            raise retrieved
        if retrieved is not None:
            yield retrieved
        async for event in calls.answers:
            yield event if isinstance(event, Piece) else Reply(calls.routed[0].ask, event, retrieved)

    async def _replies(
        self, calls: _Calls, searched: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[tuple[int, Reply | Exception]]:
        retrieved = await calls.passages()
        searched()
        async for finished in calls.answers:
            for number, answered in finished:
                failed = isinstance(answered, Exception)
                yield number, answered if failed else Reply(calls.routed[number].ask, answered, retrieved[number])
