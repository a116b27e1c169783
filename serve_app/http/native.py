"""The native interface: `/v1/answer`, `/v1/compare`, `/v1/methods`, `/v1/bank`, `/healthz` and `/readyz`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from regrad.methods.base import MethodInfo
from regrad.registry import Registry
from serve_app.config import LimitsConfig
from serve_app.http.calls import (
    Answering,
    Chunks,
    ClientOf,
    Events,
    EventStream,
    attempt,
    merged_events,
    opened,
    sse,
    unless_client_leaves,
)
from serve_app.http.errors import Problem, Refused
from serve_app.http.requests import AnswerRequest, CompareRequest, tailored
from serve_app.http.responses import (
    ANSWER_EVENTS,
    COMPARE_EVENTS,
    READING_PROBLEMS,
    READY_PROBLEMS,
    AnswerResponse,
    BankResponse,
    CompareResponse,
    LimitsInfo,
    MethodsResponse,
    OfferedMethod,
    ReadyResponse,
    answer_passages,
    answer_response,
    or_events,
)
from serve_app.messages import Ask, Piece, Reply, Retrieved, StreamEvent

_STREAMS = "Server-sent events with `stream`: `passages`, any number of `token`, then `done` or `error`."
_TAGS: list[str | Enum] = ["regrad"]


def add_native_routes(
    api: FastAPI, limits: LimitsConfig, offered: Registry[MethodInfo], answering: Callable[[], Answering]
) -> None:
    """Add the routes of the native interface."""
    _add_answer(api, limits, offered, answering)
    _add_compare(api, limits, offered, answering)
    _add_facts(api, limits, offered, answering)


def _add_answer(
    api: FastAPI, limits: LimitsConfig, offered: Registry[MethodInfo], answering: Callable[[], Answering]
) -> None:
    """The route that asks one method."""

    async def answer(body: Any, client: ClientOf) -> Any:
        request: AnswerRequest = body
        ask = request.ask(request.method, client)
        if request.stream:
            events = merged_events(client, {ask.method: partial(_stream, answering, ask)})
            return await opened(client, events, partial(_event_chunks, {ask.method: ask}, False))
        reply = await unless_client_leaves(client, attempt(client, partial(_answer, answering, ask)))
        if isinstance(reply, Problem):
            raise Refused(reply)
        return answer_response(reply)

    # FastAPI reads the body from the annotation, which depends on this server's limits and methods.
    answer.__annotations__["body"] = tailored(AnswerRequest, limits, offered)
    api.post(
        "/v1/answer",
        tags=_TAGS,
        summary="Answer a question by one method",
        description=_STREAMS,
        responses=or_events(ANSWER_EVENTS),
        response_model=AnswerResponse,
    )(answer)


def _add_compare(
    api: FastAPI, limits: LimitsConfig, offered: Registry[MethodInfo], answering: Callable[[], Answering]
) -> None:
    """The route that asks several methods."""

    async def compare(body: Any, client: ClientOf) -> Any:
        request: CompareRequest = body
        asks = {method: request.ask(method, client) for method in request.methods}
        if request.stream:
            events = merged_events(client, {ask.method: partial(_stream, answering, ask) for ask in asks.values()})
            return EventStream(client, _event_chunks(asks, True, events), events)
        outcomes = await unless_client_leaves(
            client, asyncio.gather(*[attempt(client, partial(_answer, answering, ask)) for ask in asks.values()])
        )
        return _compared(dict(zip(asks, outcomes, strict=True)))

    compare.__annotations__["body"] = tailored(CompareRequest, limits, offered)
    api.post(
        "/v1/compare",
        tags=_TAGS,
        summary="Answer a question by several methods at once",
        description=f"{_STREAMS} Every event names its method; `end` is the last one.",
        responses=or_events(COMPARE_EVENTS),
        response_model=CompareResponse,
    )(compare)


def _compared(outcomes: dict[str, Reply | Problem]) -> CompareResponse:
    """Answers and errors by method; the first error alone if there is no answer."""
    problems = {method: outcome for method, outcome in outcomes.items() if isinstance(outcome, Problem)}
    if len(problems) == len(outcomes):
        raise Refused(next(iter(problems.values())))
    answers = [answer_response(outcome) for outcome in outcomes.values() if not isinstance(outcome, Problem)]
    return CompareResponse(answers=answers, errors={method: problem.body for method, problem in problems.items()})


def _add_facts(
    api: FastAPI, limits: LimitsConfig, offered: Registry[MethodInfo], answering: Callable[[], Answering]
) -> None:
    """The routes that say what there is, and whether it runs."""

    async def methods() -> MethodsResponse:
        """Every method by name."""
        return MethodsResponse(
            methods=[OfferedMethod.model_validate(m, from_attributes=True) for m in offered.values()]
        )

    async def bank(client: ClientOf) -> BankResponse:
        releases = await unless_client_leaves(client, attempt(client, lambda: answering().releases()))
        if isinstance(releases, Problem):
            raise Refused(releases)
        return BankResponse(releases=releases, limits=LimitsInfo.model_validate(limits, from_attributes=True))

    async def readyz(client: ClientOf) -> Any:
        """Says ready if every deployment that an answer needs has a running replica."""
        missing = await unless_client_leaves(client, attempt(client, lambda: answering().missing()))
        if not missing:
            return ReadyResponse(status="ready")
        problem = missing
        if not isinstance(problem, Problem):
            text = f"not ready: there is no running replica of {', '.join(problem)}"
            problem = Problem("unavailable", 503, None, text, retry_after=5)
        # Not by `Problem.response`, which would count it: a probe every second is not a refused request.
        return JSONResponse(problem.content, problem.status, problem.headers)

    api.get("/v1/methods", tags=_TAGS, summary="The methods and what they do")(methods)
    api.get("/v1/bank", tags=_TAGS, summary="The releases that answer, and the limits", responses=READING_PROBLEMS)(
        bank
    )
    api.get("/healthz", tags=_TAGS, summary="Whether the server is up")(healthz)
    api.get(
        "/readyz",
        tags=_TAGS,
        summary="Whether the server can answer",
        responses=READY_PROBLEMS,
        response_model=ReadyResponse,
    )(readyz)


async def healthz() -> dict[str, str]:
    """Says ok as long as requests are taken."""
    return {"status": "ok"}


def _answer(answering: Callable[[], Answering], ask: Ask) -> Awaitable[Reply]:
    return answering().answer(ask)


def _stream(answering: Callable[[], Answering], ask: Ask) -> AsyncIterator[StreamEvent]:
    return answering().stream(ask)


async def _event_chunks(asks: dict[str, Ask], named: bool, events: Events) -> Chunks:
    async for method, event in events:
        label = {"method": method} if named else {}
        match event:
            case Retrieved():
                passages = answer_passages(asks[method], event.hits)
                data = {**label, "passages": passages, "milliseconds": event.milliseconds}
                yield sse(data, "passages")
            case Piece():
                yield sse({**label, "text": event.text}, "token")
            case Problem():
                yield sse({**label, "error": event.body}, "error")
            case Reply():
                yield sse(answer_response(event), "done")
    if named:
        yield sse({}, "end")
