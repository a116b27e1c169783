"""The stages of one request, composed. Responses are passed on un-awaited: sums do not pass through the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from regrad.errors import BankError, StorageError
from regrad.methods.registry import get_method
from serve_app.bank_loader import nothing
from serve_app.messages import Answered, Ask, Event, Found, GradientSum, Piece, Release, Reply, Retrieved

GONE = (RayActorError, ObjectLostError, DeploymentUnavailableError)
"""What is raised when a replica died; another one may be asked."""

LOAD_FRACTION = 0.5
"""Of a request's time, for the bank loader."""


@dataclass
class _Calls:
    """The calls of one request that are under way."""

    retrieved: Any = None
    gradients: Any = None
    answers: list[Any] = field(default_factory=list)

    def answering(self, response: Any) -> Any:
        """Remember the generator's response, so that it can be cancelled."""
        self.answers.append(response)
        return response

    def cancel(self) -> None:
        """Nobody waits any more."""
        for response in (*self.answers, self.gradients, self.retrieved):
            if response is not None:
                response.cancel()


class Stages:
    """Retriever, bank loader and generator, as one request goes through them."""

    def __init__(self, retriever: DeploymentHandle, bank_loader: DeploymentHandle, generator: DeploymentHandle) -> None:
        self._retriever, self._bank_loader, self._generator = retriever, bank_loader, generator
        self._streams = generator.options(stream=True)

    async def once(self, ask: Ask, release: Release, last: bool) -> tuple[Retrieved | None, Answered]:
        """The passages and the answer. Raises `GONE`, and what the stages raise; `last`: nobody will try again."""
        calls = self._begin(ask, release)
        call = self._generator.answer.remote
        try:
            try:
                answered: Answered = await calls.answering(call(ask, calls.retrieved, calls.gradients, release))
            except Exception as error:
                instead = await self._without_loader(calls, release, error, last)
                answered = await calls.answering(call(ask, calls.retrieved, instead, release))
            return await _arrived(calls.retrieved), answered
        except asyncio.CancelledError:
            calls.cancel()
            raise

    async def stream(self, ask: Ask, release: Release, last: bool) -> AsyncGenerator[Event]:
        """The same as events, the text as it comes; the reply's total is for the caller to set."""
        calls = self._begin(ask, release)
        begun = False
        try:
            retrieved = await _arrived(calls.retrieved)
            if retrieved is not None:
                yield Found(retrieved)
            try:
                async for event in self._events(ask, retrieved, calls, calls.gradients, release):
                    begun = True
                    yield event
            except Exception as error:
                if begun:
                    raise
                instead = await self._without_loader(calls, release, error, last)
                async for event in self._events(ask, retrieved, calls, instead, release):
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            calls.cancel()
            raise

    async def _events(
        self, ask: Ask, retrieved: Retrieved | None, calls: _Calls, gradients: Any, release: Release
    ) -> AsyncGenerator[Event]:
        events = calls.answering(self._streams.stream.remote(ask, calls.retrieved, gradients, release))
        async for event in events:
            yield event if isinstance(event, Piece) else Reply(ask, event, retrieved)

    def _begin(self, ask: Ask, release: Release) -> _Calls:
        method = get_method(ask.method)
        if not method.retrieves:
            return _Calls()
        if ask.passage_ids is not None:
            found = self._retriever.look_up.remote(list(ask.passage_ids), ask.traceparent)
        else:
            found = self._retriever.search.remote(ask.question, ask.k, ask.traceparent)
        if not method.applies_gradients:
            return _Calls(found)
        parts, seconds = ask.contributions is not None, LOAD_FRACTION * ask.seconds
        atoms = not method.computes_gradients
        return _Calls(found, self._bank_loader.load.remote(found, release, parts, seconds, ask.traceparent, atoms))

    async def _without_loader(self, calls: _Calls, release: Release, error: Exception, last: bool) -> GradientSum:
        """If it was the bank loader that failed: a sum of nothing, for the policy to deal with; else raises `error`.

        One that is gone is asked again first: its replacement, or another, most likely has the gradients.
        """
        if calls.gradients is None:
            raise error
        retrieved = await _arrived(calls.retrieved)
        try:
            await calls.gradients
        except Exception as failure:
            problem = _loader_problem(failure)
            if problem is None or (isinstance(failure, GONE) and not last):
                raise
            return nothing(retrieved, release, problem)
        raise error


async def _arrived(response: Any) -> Any:
    return None if response is None else await response


def _loader_problem(failure: Exception) -> str | None:
    """What to say of a loader that could not do its work; None if its caller must be told the error itself."""
    if isinstance(failure, GONE):
        return "the bank loader is gone"
    cause = failure.cause if isinstance(failure, RayTaskError) else failure
    if isinstance(cause, BankError | StorageError | OSError | TimeoutError):
        return str(cause)
    return None
