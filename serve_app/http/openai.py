"""The OpenAI-compatible routes: chat completions, completions, models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Path

from regrad.methods.base import MethodInfo
from regrad.registry import Registry
from serve_app.config import LimitsConfig
from serve_app.http.calls import (
    Answering,
    Client,
    ClientOf,
    EventStream,
    attempt,
    merged_events,
    opened,
    unless_client_leaves,
)
from serve_app.http.errors import Problem, Refused, invalid_request
from serve_app.http.openai_schemas import (
    CHAT,
    TEXT_COMPLETION,
    ChatCompletion,
    ChatRequest,
    Completing,
    Completion,
    CompletionRequest,
    Dialect,
    ModelInfo,
    ModelList,
    chat_completion,
    chunks,
    completion,
)
from serve_app.http.requests import default_method, tailored
from serve_app.http.responses import CHUNK_EVENTS, MODEL_PROBLEMS, or_events
from serve_app.messages import Ask, Reply, Retrieved, Sampling, Turn

COMPLETION_TOKENS = 16  # OpenAI's default for completions
_ROLES = {"developer": "system"}


def check_model_name(name: str, offered: Registry[MethodInfo]) -> None:
    """Raise `Refused` for an unknown model; the message lists the known ones."""
    if name in offered:
        return
    message = f"there is no model {name!r:.60}; the models are {', '.join(offered)}"
    raise Refused(Problem("not_found", 404, "model", message, code="model_not_found"))


def chat_ask(request: ChatRequest, limits: LimitsConfig, client: Client) -> Ask:
    """The last message is the question; the messages before it are the turns."""
    *before, last = request.messages
    if last.role != "user":
        raise invalid_request("messages", "the last one must be the user's")
    if not last.content.strip():
        raise invalid_request("messages", "the question is blank")
    if len(last.content) > limits.max_question_characters:
        raise invalid_request("messages", f"the question is longer than {limits.max_question_characters} characters")
    if request.max_tokens and request.max_completion_tokens not in (None, request.max_tokens):
        raise invalid_request("max_tokens", "differs from max_completion_tokens; give one of them")
    if any(len(message.content) > limits.max_turn_characters for message in before):
        raise invalid_request("messages", f"one is longer than {limits.max_turn_characters} characters")
    turns = tuple(Turn(_ROLES.get(message.role, message.role), message.content) for message in before)
    tokens = request.max_completion_tokens or request.max_tokens or limits.max_new_tokens
    return _ask(request, last.content, tokens, turns, False, client)


def completion_ask(request: CompletionRequest, limits: LimitsConfig, client: Client) -> Ask:
    """The prompt goes to the model as it is."""
    tokens = request.max_tokens or min(COMPLETION_TOKENS, limits.max_new_tokens)
    return _ask(request, request.prompt, tokens, (), True, client)


def _ask(
    request: Completing, question: str, max_new_tokens: int, turns: tuple[Turn, ...], raw: bool, client: Client
) -> Ask:
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=None if request.seed is None else request.seed % 2**63,  # OpenAI's may be negative
        stop=tuple(request.stop) if request.stop else None,
    )
    return Ask(
        question=question,
        method=request.method or request.model,
        k=request.k,
        gamma=request.gamma,
        sampling=sampling,
        passage_ids=None if request.passage_ids is None else tuple(request.passage_ids),
        turns=turns,
        raw=raw,
        release=request.release,
        contributions=request.contributions,
        request_id=client.request_id,
        seconds=client.seconds,
        traceparent=client.traceparent,
    )


_TAGS: list[str | Enum] = ["openai"]


def add_openai_routes(
    api: FastAPI, limits: LimitsConfig, offered: Registry[MethodInfo], answering: Callable[[], Answering]
) -> None:
    """Add the routes of the OpenAI-compatible interface."""
    _add_completions(api, limits, offered, answering)
    _add_models(api, offered)


def _add_completions(
    api: FastAPI, limits: LimitsConfig, offered: Registry[MethodInfo], answering: Callable[[], Answering]
) -> None:
    """The routes that ask a question."""

    async def chat(body: Any, client: ClientOf) -> Any:
        request: ChatRequest = body
        check_model_name(request.model, offered)
        client = replace(client, question_field=CHAT.question_field)
        ask = chat_ask(request, limits, client)
        if request.stream:
            return await _streamed(CHAT, client, answering, ask, request.include_usage)
        return chat_completion(await _whole(client, answering, ask))

    async def complete(body: Any, client: ClientOf) -> Any:
        request: CompletionRequest = body
        check_model_name(request.model, offered)
        client = replace(client, question_field=TEXT_COMPLETION.question_field)
        ask = completion_ask(request, limits, client)
        if request.stream:
            return await _streamed(TEXT_COMPLETION, client, answering, ask, request.include_usage)
        return completion(await _whole(client, answering, ask))

    # FastAPI reads the bodies from the annotations, and theirs depend on this server's limits and methods.
    chat.__annotations__["body"] = tailored(ChatRequest, limits, offered)
    complete.__annotations__["body"] = tailored(CompletionRequest, limits, offered)
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


def _add_models(api: FastAPI, offered: Registry[MethodInfo]) -> None:
    """The routes that list the methods."""

    async def models() -> ModelList:
        """Every method; the first one is the default."""
        names = sorted(offered, key=lambda name: name != default_method(offered))
        return ModelList(data=[ModelInfo(id=name) for name in names])

    async def model(model: str) -> ModelInfo:
        """The method of this name."""
        check_model_name(model, offered)
        return ModelInfo(id=model)

    model.__annotations__["model"] = Annotated[str, Path(examples=[default_method(offered)])]
    api.get("/v1/models", tags=_TAGS, summary="The methods as models")(models)
    api.get("/v1/models/{model:path}", tags=_TAGS, summary="One method as a model", responses=MODEL_PROBLEMS)(model)


async def _whole(client: Client, answering: Callable[[], Answering], ask: Ask) -> Reply:
    reply = await unless_client_leaves(client, attempt(client, lambda: answering().answer(ask)))
    if isinstance(reply, Problem):
        raise Refused(reply)
    return reply


async def _streamed(
    dialect: Dialect, client: Client, answering: Callable[[], Answering], ask: Ask, include_usage: bool
) -> EventStream:
    events = merged_events(client, {ask.method: lambda: answering().stream(ask)})
    return await opened(client, events, partial(chunks, dialect, ask, include_usage), silent=Retrieved)
