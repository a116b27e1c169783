"""The OpenAI-compatible interface: `/v1/chat/completions`, `/v1/completions`, `/v1/models`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Path

from regrad.config import LimitsConfig
from regrad.methods import SERVED
from serve_app.api.answering import Answering
from serve_app.api.calling import Caller, CallerOf, attempt, watched
from serve_app.api.docs import CHUNK_EVENTS, MODEL_PROBLEMS, or_events
from serve_app.api.errors import Problem, Refused
from serve_app.api.fields import limited
from serve_app.api.openai_asks import chat_ask, completion_ask, unknown_model
from serve_app.api.openai_models import DEFAULT_MODEL, ChatRequest, CompletionRequest
from serve_app.api.openai_replies import (
    CHAT,
    TEXT,
    ChatCompletion,
    Completion,
    Dialect,
    ModelInfo,
    ModelList,
    chat_completion,
    chunks,
    completion,
)
from serve_app.api.streaming import EventStream, merged, opened
from serve_app.messages import Ask, Found, Reply

_TAGS: list[str | Enum] = ["openai"]


def add_openai_routes(api: FastAPI, limits: LimitsConfig, answering: Callable[[], Answering]) -> None:
    """Add the routes of the OpenAI-compatible interface."""

    async def chat(body: Any, caller: CallerOf) -> Any:
        request: ChatRequest = body
        caller = replace(caller, question_field=CHAT.question_field)
        ask = chat_ask(request, limits, caller)
        if request.stream:
            return await _streamed(CHAT, caller, answering, ask, request.include_usage)
        return chat_completion(await _whole(caller, answering, ask))

    async def complete(body: Any, caller: CallerOf) -> Any:
        request: CompletionRequest = body
        caller = replace(caller, question_field=TEXT.question_field)
        ask = completion_ask(request, limits, caller)
        if request.stream:
            return await _streamed(TEXT, caller, answering, ask, request.include_usage)
        return completion(await _whole(caller, answering, ask))

    chat.__annotations__["body"] = limited(ChatRequest, limits)
    complete.__annotations__["body"] = limited(CompletionRequest, limits)
    api.post(
        "/v1/chat/completions",
        tags=_TAGS,
        summary="Answer the last message of a conversation",
        responses=or_events(CHUNK_EVENTS),
        response_model=ChatCompletion,
    )(chat)
    api.post(
        "/v1/completions",
        tags=_TAGS,
        summary="Go on from a prompt",
        responses=or_events(CHUNK_EVENTS),
        response_model=Completion,
    )(complete)
    api.get("/v1/models", tags=_TAGS, summary="The methods as models")(models)
    api.get("/v1/models/{model:path}", tags=_TAGS, summary="One method as a model", responses=MODEL_PROBLEMS)(model)


async def models() -> ModelList:
    """Every method; the first one is the default."""
    names = sorted(SERVED, key=lambda name: name != DEFAULT_MODEL)
    return ModelList(data=[ModelInfo(id=name) for name in names])


async def model(model: Annotated[str, Path(examples=[DEFAULT_MODEL])]) -> ModelInfo:
    """The method of this name."""
    if model not in SERVED:
        raise unknown_model(model)
    return ModelInfo(id=model)


async def _whole(caller: Caller, answering: Callable[[], Answering], ask: Ask) -> Reply:
    reply = await watched(caller, attempt(caller, lambda: answering().answer(ask)))
    if isinstance(reply, Problem):
        raise Refused(reply)
    return reply


async def _streamed(
    dialect: Dialect, caller: Caller, answering: Callable[[], Answering], ask: Ask, include_usage: bool
) -> EventStream:
    events = merged(caller, {ask.method: lambda: answering().stream(ask)})
    return await opened(caller, events, partial(chunks, dialect, ask, include_usage), silent=Found)
