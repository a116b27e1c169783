"""A question's way: admitted, given a release, answered by three calls, and asked again when a replica has died.

The three calls take and give lists, so one request and a micro-batch of several are answered by the same lines. Each
call gets the responses of the ones before un-awaited: sums do not pass through the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from regrad.methods.base import BankNeed
from serve_app.config import GroupConfig, ServeConfig
from serve_app.http.errors import UnknownRelease
from serve_app.messages import Ask, Piece, Release, Reply, Retrieved, RoutedAsk, StreamEvent
from serve_app.methods import offers_of
from serve_app.rollout import Follower

logger = logging.getLogger("ray.serve")

GONE = (RayActorError, ObjectLostError, DeploymentUnavailableError)
"""What says that a replica died; another one may be asked."""
_TRIES = 3
_PAUSE_SECONDS = 0.2


class _LoaderGone(Exception):
    """The bank loader's replica died: if that happens every time, the generator is asked without it."""


@dataclass(frozen=True)
class _Calls:
    """The calls under way for these requests: responses of Serve, None where no request needs the call."""

    routed: Sequence[RoutedAsk]
    retrieved: Any
    gradients: Any
    answers: Any

    async def passages(self) -> Sequence[Retrieved | Exception | None]:
        """What the retriever found for each request."""
        return [None] * len(self.routed) if self.retrieved is None else await self.retrieved

    async def cause(self, error: Exception) -> Exception:
        """The failure that is behind an error of the last call: that of the first call that failed."""
        # Each response is handed on un-awaited, so a failed search or load surfaces as an error of the generator's.
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
        """Stop the calls that are still under way; those that are over do not notice."""
        for response in (self.answers, self.gradients, self.retrieved):
            if response is not None:
                response.cancel()


class Router:
    """Takes questions through retriever, bank loader and generator, each under one release from end to end.

    The three are Serve's handles, or what is called like them (`Embedded`).
    """

    def __init__(
        self,
        config: ServeConfig,
        follower: Follower,
        retriever: Any,
        bank_loader: Any,
        generator: Any,
    ) -> None:
        self._max_in_flight = config.limits.max_in_flight
        self._in_flight = 0
        self._offers = offers_of(config)
        self._follower = follower
        self._retriever = retriever
        self._bank_loader = bank_loader
        self._generator = generator
        self._microbatches = Microbatches(config.groups, self._together)

    @property
    def full(self) -> bool:
        """Whether as many requests are in flight as the limits allow."""
        return self._in_flight >= self._max_in_flight

    async def answer(self, ask: Ask) -> Reply:
        """The whole answer. Raises `BackPressureError` if the router is full, and what the deployments raise."""
        started = time.perf_counter()
        with self._admitted():
            routed = self._routed(ask)
            reply = await self._microbatches.answer(routed)
            if reply is None:
                *_, reply = [event async for event in self._tried(routed, streams=False) if isinstance(event, Reply)]
        return replace(reply, total_milliseconds=(time.perf_counter() - started) * 1e3)

    async def stream(self, ask: Ask) -> AsyncGenerator[StreamEvent]:
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
        return self._offers[ask.method].routed(ask, release_for(ask, self._follower.releases))

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

    async def _tried(self, routed: RoutedAsk, streams: bool) -> AsyncGenerator[StreamEvent]:
        """The events of one request that goes alone: the passages and pieces of a stream, and the reply.

        Answering changes nothing, so when a replica has died another is asked, as long as no text was sent. After
        that many tries without a bank loader the generator does without, by the method's policy.
        """
        failed = 0
        text_sent = False
        while True:
            # The last try does not ask a dead loader, so it ends one way or the other.
            calls = self._begin([routed], streams, asks_bank=failed < _TRIES)
            try:
                async with aclosing(self._pieces(calls) if streams else self._whole(calls)) as events:
                    async for event in events:
                        text_sent = text_sent or isinstance(event, Piece)
                        yield event
                return
            except Exception as error:
                if text_sent:
                    raise
                failed += 1
                cause = await calls.cause(error)
                if not (isinstance(cause, _LoaderGone) or (isinstance(cause, GONE) and failed < _TRIES)):
                    raise cause from None
            finally:
                calls.cancel()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _whole(self, calls: _Calls) -> AsyncGenerator[StreamEvent]:
        async for _, reply in self._replies(calls):
            if isinstance(reply, Exception):
                raise reply
            yield reply

    async def _pieces(self, calls: _Calls) -> AsyncGenerator[StreamEvent]:
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


def release_for(ask: Ask, releases: Sequence[Release]) -> Release:
    """The release that a request names, else one by their shares: the same for a request's id as long as they last.

    Raises `UnknownRelease` for one that is not current.
    """
    if ask.release is None:
        return random.Random(ask.request_id).choices(releases, [release.share for release in releases])[0]
    for release in releases:
        if release.name == ask.release:
            return release
    names = [release.name for release in releases]
    text = f"there is no release {ask.release!r}; the releases are {', '.join(names)}"
    raise UnknownRelease(text, name=ask.release, known=names)


Together = Callable[[Sequence[RoutedAsk], Callable[[], None]], AsyncGenerator[tuple[int, Reply | Exception]]]
"""Answers several requests by the same calls, each reply (or error) with its request's number, as they are done. Calls
its second argument when the passages have arrived."""


@dataclass
class _Member:
    """A request that waits for, or travels in, a micro-batch."""

    routed: RoutedAsk
    reply: asyncio.Future[Reply | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def resolve(self, reply: Reply | Exception | None) -> None:
        """Give the client's task its reply or error; None: it has to go alone."""
        if self.reply.done():
            return
        if isinstance(reply, Exception):
            self.reply.set_exception(reply)
        else:
            self.reply.set_result(reply)


class Microbatches:
    """Puts requests with short answers into one call: a call between deployments costs as much as a short answer.

    A micro-batch leaves at once if few are under way; else requests gather while the one before looks for its
    passages. Each answer comes back when it is done. A client that disconnects costs the decoding of a short answer at
    most; long answers go alone, and so does each request of a micro-batch that failed as a whole.
    """

    def __init__(self, config: GroupConfig, together: Together) -> None:
        self._config = config
        self._together = together
        self._waiting: list[_Member] = []
        self._searching = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, routed: RoutedAsk) -> Reply | None:
        """The reply, or None if the request has to go alone. Raises its error."""
        if routed.ask.sampling.max_new_tokens > self._config.max_new_tokens:
            return None
        member = _Member(routed)
        self._waiting.append(member)
        self._leave()
        return await member.reply

    def _leave(self) -> None:
        """Send off those that wait, as long as not too many micro-batches are looking for passages."""
        while self._waiting and self._searching < self._config.at_once:
            members = self._waiting[: self._config.max_size]
            self._waiting = self._waiting[self._config.max_size :]
            members = [member for member in members if not member.reply.done()]  # without clients that have left
            if members:
                self._searching += 1
                task = asyncio.create_task(self._travel(members))
                self._tasks.add(task)  # the event loop itself keeps only a weak reference
                task.add_done_callback(self._tasks.discard)

    async def _travel(self, members: Sequence[_Member]) -> None:
        searching = True

        def searched() -> None:
            nonlocal searching
            if searching:  # called again at the end, in case the search failed; the place is freed once
                searching = False
                self._searching -= 1
                self._leave()

        try:
            async with aclosing(self._together([member.routed for member in members], searched)) as replies:
                async for number, reply in replies:
                    members[number].resolve(reply)
                    if all(member.reply.done() for member in members):
                        break
        except BackPressureError as error:  # going alone would only add to the load
            for member in members:
                member.resolve(error)
        except Exception as error:
            logger.warning(
                "a micro-batch of %d requests failed, they continue one by one: %s", len(members), type(error).__name__
            )
        finally:
            searched()
            for member in members:
                member.resolve(None)
