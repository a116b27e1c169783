"""Deployment: the HTTP door. It admits requests, picks their release, watches them, and asks again after a death."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from regrad.errors import RegradError
from regrad.settings import parse_settings
from serve_app.auth.gate import current_caller
from serve_app.config import ServeConfig
from serve_app.http.errors import Record, current_record, problem_of
from serve_app.messages import Answered, Ask, Event, Found, Piece, Release, Reply, Retrieved
from serve_app.microbatch import Groups
from serve_app.observability.tracing import Watch
from serve_app.pipeline import GONE, Stages
from serve_app.readiness import Readiness
from serve_app.rollout import Follower, ReleaseList

logger = logging.getLogger("ray.serve")

_TRIES = 3
_PAUSE_SECONDS = 0.2


class Gateway:
    """Composes retriever, bank loader and generator for each request, of one release from end to end."""

    def __init__(
        self,
        config: ServeConfig,
        retriever: DeploymentHandle,
        bank_loader: DeploymentHandle,
        generator: DeploymentHandle,
    ) -> None:
        self._config = config
        self._stages = Stages(retriever, bank_loader, generator)
        self._groups = Groups(config.groups, self._stages, (retriever, bank_loader, generator))
        self._follower = Follower(config)
        self._watch = Watch(config.watching, "gateway")
        self._readiness = Readiness()
        self._in_flight = 0

    async def reconfigure(self, user_config: Mapping[str, Any] | None) -> None:
        """Serve's `user_config`: `{"releases": [...]}` overrides the file of releases.

        A wrong one stops a new replica, but not one that is up: Serve would replace it by one that cannot start.
        """
        given = user_config and {key: user_config[key] for key in user_config}
        try:
            wanted = parse_settings(ReleaseList, given, "the gateway's user_config") if given else None
            await asyncio.to_thread(self._follower.set, wanted)
        except (RegradError, OSError) as error:
            if not self._follower.started:
                raise
            logger.error("the user_config cannot be taken up, the last good releases stay: %s", error)

    async def check_health(self) -> None:
        """From the first check on, when the replica is up, it follows the releases, whether anybody asks or not."""
        self._follower.start()

    async def releases(self) -> list[dict[str, object]]:
        """What questions are answered from now."""
        return list(self._follower.facts)

    @property
    def full(self) -> bool:
        """Whether as many requests are in flight as the limits let in."""
        return self._in_flight >= self._config.limits.max_in_flight

    async def missing(self) -> list[str]:
        """The deployments behind the gateway that have no running replica."""
        return await self._readiness.missing()

    def refused(self, record: Record) -> None:
        """Count and log a request that was refused before it came here."""
        if record.problem:
            self._watch.failed(None, record.problem, record.key_id, record.request_id)

    async def answer(self, ask: Ask) -> Reply:
        """The whole answer. If a replica dies another is asked: answering changes nothing, so it can be done again."""
        started = time.perf_counter()
        with self._watched(ask) as (ask, seen), self._admitted():
            release = self._follower.pick(ask)
            retrieved, answered = await self._retried(ask, release)
            seen(reply := Reply(ask, answered, retrieved, (time.perf_counter() - started) * 1e3))
            return reply

    async def stream(self, ask: Ask) -> AsyncGenerator[Event]:
        """The passages, the text as it comes, the whole answer. Tried again only before the first piece is out."""
        started = time.perf_counter()
        first: float | None = None
        caller, pieces = current_caller(), 0
        with self._watched(ask) as (ask, seen), self._admitted():
            release = self._follower.pick(ask)
            for last in _tries():
                out = False
                try:
                    async with contextlib.aclosing(self._stages.stream(ask, release, last)) as events:
                        async for event in events:
                            out = out or not isinstance(event, Found)
                            if isinstance(event, Piece):
                                first = first or time.perf_counter() - started
                                pieces += 1
                                if caller:  # at once: who leaves before the end has had it, too
                                    caller.charge(1)
                            if isinstance(event, Reply):
                                event = replace(event, total_milliseconds=(time.perf_counter() - started) * 1e3)
                                seen(event, first, pieces)
                            yield event
                    return
                except GONE:
                    if last or out:
                        raise
                    await asyncio.sleep(_PAUSE_SECONDS)

    async def _retried(self, ask: Ask, release: Release) -> tuple[Retrieved | None, Answered]:
        for last in _tries():
            try:
                return await self._groups.once(ask, release, last)
            except GONE:
                if last:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError("the last try returns or raises")

    @contextlib.contextmanager
    def _watched(self, ask: Ask) -> Iterator[tuple[Ask, Callable[..., None]]]:
        """Counts, logs and traces a request; gives it with its place in the trace, and what to call with the reply."""
        watch, caller = self._watch, current_caller()
        key_id = caller.key_id if caller else None

        def seen(reply: Reply, first_token_seconds: float | None = None, charged: int = 0) -> None:
            watch.observe(reply, key_id, first_token_seconds)
            if caller:
                caller.charge(reply.answered.completion_tokens - charged)

        with watch.metrics.working(), watch.span("answer", ask.traceparent, method=ask.method) as here:
            try:
                yield replace(ask, traceparent=here), seen
            except Exception as error:
                watch.failed(ask, problem_of(error), key_id)
                if record := current_record():
                    record.counted = True
                raise

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        """Counts the request in; raises `BackPressureError` if the gateway is full."""
        if self.full:
            raise BackPressureError(num_queued_requests=self._in_flight, max_queued_requests=self._in_flight)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1


def _tries() -> Iterator[bool]:
    """Whether it is the last one."""
    return iter([False] * (_TRIES - 1) + [True])
