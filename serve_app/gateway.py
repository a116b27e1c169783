"""Deployment: the HTTP entrance. It follows the releases, observes its router's answers, and knows what is running."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from regrad.errors import RegradError
from regrad.settings import parse_settings
from serve_app.auth.gate import caller_at_hand
from serve_app.config import ServeConfig
from serve_app.embedded import Embedded
from serve_app.evidence import BankLoaderDeployment, RetrieverDeployment
from serve_app.http.errors import RequestRecord, current_record, problem_of
from serve_app.messages import Ask, Piece, Release, Reply, StreamEvent
from serve_app.methods import offers_of
from serve_app.observability import Watch
from serve_app.rollout import Follower, ReleaseList
from serve_app.router import Router

logger = logging.getLogger("ray.serve")

_OPEN_SECONDS = 10.0


class Gateway:
    """What the HTTP routes call: questions, and what they are answered from."""

    def __init__(
        self,
        config: ServeConfig,
        retriever: DeploymentHandle | None,
        bank_loader: DeploymentHandle | None,
        generator: DeploymentHandle,
    ) -> None:
        self._follower = Follower(config, self._open_ahead)
        self._embedded: Embedded | None = None
        needed = ["retriever", "bank_loader", "generator"]
        called: tuple[Any, Any, Any] = retriever, bank_loader, generator.options(stream=True)
        if retriever is None or bank_loader is None:
            self._embedded = Embedded(RetrieverDeployment(config), BankLoaderDeployment(config))
            needed = ["generator"]
            called = self._embedded.handles(called[2])
        self._opening = called[1], generator
        self._router = Router(config, self._follower, *called)
        self._watch = Watch(config.watching, "gateway", offers_of(config))
        self._readiness = Readiness(needed)

    async def reconfigure(self, user_config: Mapping[str, Any] | None) -> None:
        """Serve's `user_config`: `{"releases": [...]}` overrides the file of releases.

        A wrong one stops a new replica, but not one that is up: Serve would replace it by one that cannot start.
        """
        try:
            wanted = (
                parse_settings(ReleaseList, dict(user_config), "the gateway's user_config") if user_config else None
            )
            await asyncio.to_thread(self._follower.set, wanted)
        except (RegradError, OSError) as error:
            if not self._follower.started:
                raise
            logger.error("the user_config cannot be used, the last good releases stay: %s", error)

    async def check_health(self) -> None:
        """Starts to follow the releases at Serve's first check: only then is the replica's event loop running.

        Raises if a retriever or bank loader of this process does not answer, so that Serve replaces the replica.
        """
        self._follower.start()
        if self._embedded:
            await self._embedded.check_health()

    async def _open_ahead(self, releases: Sequence[Release]) -> None:
        """Have a bank loader and a generator open these while the older ones answer, so that no question waits for it.

        One replica of each is asked. Others open a release with their first question of it, as all do if this fails.
        """
        try:
            calls = [handle.open.remote(releases) for handle in self._opening]
            async with asyncio.timeout(_OPEN_SECONDS):
                for call in calls:
                    await call
        except Exception as error:
            names = ", ".join(release.name for release in releases)
            logger.warning("%s cannot be opened before the first question: %s", names, type(error).__name__)

    async def releases(self) -> list[dict[str, object]]:
        """The releases that questions are answered from."""
        return list(self._follower.facts)

    @property
    def full(self) -> bool:
        """Whether as many requests are in flight as the limits allow."""
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

    async def stream(self, ask: Ask) -> AsyncGenerator[StreamEvent]:
        """The passages, the text as it comes, the whole answer."""
        started = time.perf_counter()
        caller = caller_at_hand.get()
        first_token_seconds: float | None = None
        pieces = 0
        with self._observed(ask) as (ask, observe):
            async with contextlib.aclosing(self._router.stream(ask)) as events:
                async for event in events:
                    if isinstance(event, Piece):
                        first_token_seconds = first_token_seconds or time.perf_counter() - started
                        pieces += 1
                        if caller:  # at once: a client that disconnects before the end pays for what it got
                            caller.charge(1)
                    elif isinstance(event, Reply):
                        observe(event, first_token_seconds, pieces)
                    yield event

    @contextlib.contextmanager
    def _observed(self, ask: Ask) -> Iterator[tuple[Ask, Callable[..., None]]]:
        """Count, log and trace a request; gives it with its place in the trace, and what to call with the reply."""
        watch = self._watch
        caller = caller_at_hand.get()
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
                    record.counted = True  # else the middleware would count its error response again
                raise


_KEEP_SECONDS = 1.0
_WAIT_SECONDS = 5.0


def without_replicas(needed: Sequence[str]) -> list[str]:
    """Those of the deployments behind the gateway of this process that have no running replica, as Serve's controller
    knows."""
    deployments = serve.status().applications[serve.get_replica_context().app_name].deployments
    running = {name for name, status in deployments.items() if status.replica_states.get(ReplicaState.RUNNING)}
    return [name for name in needed if name not in running]


class Readiness:
    """Whether the server can answer: a gateway that is up is of no use while a deployment behind it has no replica.

    It asks Serve's controller once a second at most. If the controller is silent, what it said last stays: replicas
    answer without it.
    """

    def __init__(self, needed: Sequence[str], look: Callable[[Sequence[str]], list[str]] = without_replicas) -> None:
        self._needed = needed
        self._look = look
        self._missing = list(needed)
        self._looked = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    async def missing(self) -> list[str]:
        """The deployments that have no running replica."""
        if self._looking is None and time.monotonic() - self._looked > _KEEP_SECONDS:
            self._looking = asyncio.create_task(self._renew())
        if self._looking is not None:
            await asyncio.wait({self._looking}, timeout=_WAIT_SECONDS)
        return self._missing

    async def _renew(self) -> None:
        try:
            self._missing = await asyncio.to_thread(self._look, self._needed)
        except Exception as error:
            logger.warning("Serve's controller does not say what is running: %s", type(error).__name__)
        finally:
            self._looked = time.monotonic()
            self._looking = None
