"""Deployment: the HTTP door. It follows the releases, and observes what its router answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ray.serve.handle import DeploymentHandle

from regrad.errors import RegradError
from regrad.settings import parse_settings
from serve_app.auth.gate import current_caller
from serve_app.config import ServeConfig
from serve_app.http.errors import RequestRecord, current_record, problem_of
from serve_app.messages import Ask, Event, Piece, Reply
from serve_app.observability.tracing import Watch
from serve_app.offers import offers_of
from serve_app.readiness import Readiness
from serve_app.rollout import Follower, ReleaseList
from serve_app.router import Router

logger = logging.getLogger("ray.serve")


class Gateway:
    """What the HTTP routes call: questions, and what they are answered from."""

    def __init__(
        self,
        config: ServeConfig,
        retriever: DeploymentHandle,
        bank_loader: DeploymentHandle,
        generator: DeploymentHandle,
    ) -> None:
        self._follower = Follower(config)
        self._router = Router(config, self._follower, retriever, bank_loader, generator)
        self._watch = Watch(config.watching, "gateway", offers_of(config))
        self._readiness = Readiness()

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
        return self._router.full

    async def missing(self) -> list[str]:
        """The deployments behind the gateway that have no running replica."""
        return await self._readiness.missing()

    def refused(self, record: RequestRecord) -> None:
        """Count and log a request that was refused before it came here."""
        if record.problem:
            self._watch.failed(None, record.problem, record.key_id, record.request_id)

    async def answer(self, ask: Ask) -> Reply:
        """The whole answer."""
        with self._observed(ask) as (ask, observe):
            reply = await self._router.answer(ask)
            observe(reply)
            return reply

    async def stream(self, ask: Ask) -> AsyncGenerator[Event]:
        """The passages, the text as it comes, the whole answer."""
        started, first, pieces, caller = time.perf_counter(), None, 0, current_caller()
        with self._observed(ask) as (ask, observe):
            async with contextlib.aclosing(self._router.stream(ask)) as events:
                async for event in events:
                    if isinstance(event, Piece):
                        first = first or time.perf_counter() - started
                        pieces += 1
                        if caller:  # at once: a client that leaves before the end has had it, too
                            caller.charge(1)
                    elif isinstance(event, Reply):
                        observe(event, first, pieces)
                    yield event

    @contextlib.contextmanager
    def _observed(self, ask: Ask) -> Iterator[tuple[Ask, Callable[..., None]]]:
        """Counts, logs and traces a request; gives it with its place in the trace, and what to call with the reply."""
        watch, caller = self._watch, current_caller()
        key_id = caller.key_id if caller else None

        def observe(reply: Reply, first_token_seconds: float | None = None, charged: int = 0) -> None:
            watch.observe(reply, key_id, first_token_seconds)
            if caller:
                caller.charge(reply.answered.completion_tokens - charged)

        with watch.metrics.working(), watch.span("answer", ask.traceparent, method=ask.method) as here:
            try:
                yield replace(ask, traceparent=here), observe
            except Exception as error:
                watch.failed(ask, problem_of(error), key_id)
                if record := current_record():
                    record.counted = True
                raise
