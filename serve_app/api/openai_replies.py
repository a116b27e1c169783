"""The OpenAI-compatible interface: answers, whole and in chunks. `regrad` in them is this server's own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from serve_app.api.replies import Grounds, Usage, grounds, usage_of
from serve_app.api.streaming import Chunks, Events, sse
from serve_app.messages import Ask, Found, Piece, Reply

Finish = Literal["stop", "length"]


class AssistantMessage(BaseModel):
    """The answer as a message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The answer in a chat completion."""

    index: int = 0
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Finish


class TextChoice(BaseModel):
    """The answer in a completion."""

    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: Finish


class _Completed(BaseModel):
    id: str
    created: int
    model: str
    usage: Usage
    regrad: Grounds


class ChatCompletion(_Completed):
    """The answer to `POST /v1/chat/completions`."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class Completion(_Completed):
    """The answer to `POST /v1/completions`."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


class ModelInfo(BaseModel):
    """One method as a model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["regrad"] = "regrad"


class ModelList(BaseModel):
    """The answer to `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


@dataclass(frozen=True)
class Dialect:
    """One of the two kinds of completion: where the question is in its body, and how its chunks look."""

    question_field: str
    id_prefix: str
    chunk: str
    chat: bool

    def id(self, ask: Ask) -> str:
        """The id of a completion."""
        return f"{self.id_prefix}-{ask.request_id}"

    def opening(self) -> list[dict[str, Any]]:
        """The choices of the first chunk."""
        return [_delta({"role": "assistant", "content": ""})] if self.chat else []

    def piece(self, text: str, finish: Finish | None = None) -> list[dict[str, Any]]:
        """The choices of a chunk that brings some text, or of that which ends the answer."""
        if self.chat:
            return [_delta({"content": text} if finish is None else {}, finish)]
        return [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]


CHAT = Dialect("messages", "chatcmpl", "chat.completion.chunk", chat=True)
TEXT = Dialect("prompt", "cmpl", "text_completion", chat=False)


def chat_completion(reply: Reply) -> ChatCompletion:
    """A whole answer to a chat."""
    message = AssistantMessage(content=reply.answered.text)
    choice = ChatChoice(message=message, finish_reason=reply.answered.finish_reason)
    return ChatCompletion(choices=[choice], **_completed(CHAT, reply))


def completion(reply: Reply) -> Completion:
    """A whole answer to a prompt."""
    choice = TextChoice(text=reply.answered.text, finish_reason=reply.answered.finish_reason)
    return Completion(choices=[choice], **_completed(TEXT, reply))


async def chunks(dialect: Dialect, ask: Ask, include_usage: bool, events: Events) -> Chunks:
    """The same in chunks; an error ends them."""
    head: dict[str, Any] = {
        "id": dialect.id(ask),
        "object": dialect.chunk,
        "created": int(time.time()),
        "model": ask.method,
    }
    if include_usage:
        head["usage"] = None
    if opening := dialect.opening():
        yield sse({**head, "choices": opening})
    async for _, event in events:
        if isinstance(event, Found):
            continue
        if isinstance(event, Piece):
            yield sse({**head, "choices": dialect.piece(event.text)})
        elif isinstance(event, Reply):
            for last in _last_chunks(dialect, head, event, include_usage):
                yield sse(last)
        else:
            yield sse({"error": event.body})
            return
    yield sse("[DONE]")


def _last_chunks(dialect: Dialect, head: dict[str, Any], reply: Reply, include_usage: bool) -> list[dict[str, Any]]:
    end = {**head, "choices": dialect.piece("", reply.answered.finish_reason)}
    last = [end, {**head, "choices": [], "usage": usage_of(reply)}] if include_usage else [end]
    last[-1]["regrad"] = grounds(reply)
    return last


def _completed(dialect: Dialect, reply: Reply) -> dict[str, Any]:
    return {
        "id": dialect.id(reply.ask),
        "created": int(time.time()),
        "model": reply.ask.method,
        "usage": usage_of(reply),
        "regrad": grounds(reply),
    }


def _delta(delta: dict[str, str], finish: Finish | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
