"""The bodies of OpenAI-compatible requests and responses, and their chunks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from regrad.methods.base import Contributions
from serve_app.http.calls import Chunks, Events, sse
from serve_app.http.requests import Only, PassageIds, QuestionText, Strict, StringOrStops, ValidText
from serve_app.http.responses import Grounds, Usage, grounds, usage_of
from serve_app.messages import Ask, Piece, Reply, Retrieved

DEFAULT_MODEL = "regrad"
_PARTS = {"type": "array", "items": {"type": "object", "required": ["type", "text"]}}
_IGNORED: Any = Field(None, description="accepted and ignored")
# What clients add to a part of a message: a mark for a provider's cache, and what is empty in their own answers.
_IGNORED_IN_PART = {"cache_control", "prompt_cache_breakpoint", "index", "id"}
_EMPTY_IN_PART = {"annotations", "logprobs", "citations"}


def _joined(content: Any) -> Any:
    """Content that comes as a list of text parts, as one string."""
    if not isinstance(content, list):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise ValueError(f"only parts of type 'text' are understood, found {kind!r:.40}")
        if not isinstance(part.get("text"), str):
            raise ValueError("a text part has a type and a text, which is a string")
        empty = {name for name, value in part.items() if value is None or (name in _EMPTY_IN_PART and not value)}
        known = {"type", "text"} | _IGNORED_IN_PART | empty
        if unknown := sorted(set(part) - known):
            raise ValueError(f"a text part has a type and a text; {unknown[0]!r:.40} is not supported here")
    return "\n".join(part["text"] for part in content)


def _only_one(prompt: Any) -> Any:
    """A list of one prompt as that prompt: some clients always send a list."""
    return prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt


Content = Annotated[ValidText, BeforeValidator(_joined), WithJsonSchema({"anyOf": [{"type": "string"}, _PARTS]})]


def _allow_nulls(schema: dict[str, Any]) -> None:
    """Say in a body's description that each of its optional fields, and any other, may be null."""
    schema["additionalProperties"] = {"type": "null"}
    for name, field in schema["properties"].items():
        if "type" in field and name not in schema.get("required", ()):
            kind = {key: field.pop(key) for key in list(field) if key not in ("title", "description", "default")}
            field["anyOf"] = [kind, {"type": "null"}]


class Lenient(Strict):
    """As `Strict`, but that a field which is null counts as left out: many clients write all that they know."""

    model_config = ConfigDict(json_schema_extra=_allow_nulls)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None or name in required}


class Message(Lenient):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Any = _IGNORED
    id: Any = _IGNORED
    type: Any = _IGNORED
    status: Any = _IGNORED
    cache_control: Any = _IGNORED
    # What answers of ours, and of other servers, have beside their content, as clients send them back.
    refusal: Annotated[Any, Only(None, "")] = None
    annotations: Annotated[Any, Only(None, [])] = None
    citations: Annotated[Any, Only(None, [])] = None
    images: Annotated[Any, Only(None, [])] = None
    metadata: Annotated[Any, Only(None, {})] = None
    audio: Annotated[Any, Only(None)] = None
    function_call: Annotated[Any, Only(None)] = None
    tool_calls: Annotated[Any, Only(None, [])] = None
    tool_call_id: Annotated[Any, Only(None)] = None
    reasoning: Annotated[Any, Only(None, "")] = None
    reasoning_content: Annotated[Any, Only(None, "")] = None
    reasoning_details: Annotated[Any, Only(None, [])] = None
    thinking_blocks: Annotated[Any, Only(None, [])] = None
    provider_specific_fields: Any = _IGNORED
    prefix: Annotated[Any, Only(None, False)] = None


class StreamOptions(Lenient):
    """What a stream contains besides the answer."""

    include_usage: bool | None = Field(None, description="one more chunk at the end, with the usage")
    include_obfuscation: Any = _IGNORED
    continuous_usage_stats: Any = _IGNORED


class Completing(Lenient):
    """The fields that both kinds of completion share.

    OpenAI's that do not change an answer here are ignored, those that would are refused, and ours come last.
    """

    model: str = DEFAULT_MODEL
    stream: bool | None = Field(None, description="server-sent events instead of one body")
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="default 0: greedy")
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="makes sampling repeatable")
    stop: StringOrStops | None = Field(None, description="strings that end the answer; default: the model's")

    n: Annotated[Any, Only(None, 1)] = None
    presence_penalty: Annotated[Any, Only(None, 0)] = None
    frequency_penalty: Annotated[Any, Only(None, 0)] = None
    logit_bias: Annotated[Any, Only(None, {})] = None
    # Of other servers with this interface, whose clients send the defaults.
    top_k: Annotated[Any, Only(None, 0, -1)] = None
    min_p: Annotated[Any, Only(None, 0)] = None
    repetition_penalty: Annotated[Any, Only(None, 1)] = None
    min_tokens: Annotated[Any, Only(None, 0)] = None
    ignore_eos: Annotated[Any, Only(None, False)] = None
    skip_special_tokens: Annotated[Any, Only(None, True)] = None
    spaces_between_special_tokens: Annotated[Any, Only(None, True)] = None
    stop_token_ids: Annotated[Any, Only(None, [])] = None
    include_stop_str_in_output: Annotated[Any, Only(None, False)] = None
    bad_words: Annotated[Any, Only(None, [])] = None
    length_penalty: Annotated[Any, Only(None, 1)] = None
    use_beam_search: Annotated[Any, Only(None, False)] = None
    typical_p: Annotated[Any, Only(None, 1)] = None
    best_of: Annotated[Any, Only(None, 1)] = None
    echo: Annotated[Any, Only(None, False)] = None
    do_sample: Annotated[Any, Only(None, False)] = None
    think: Annotated[Any, Only(None, False)] = None
    documents: Annotated[Any, Only(None, [])] = None
    return_token_ids: Annotated[Any, Only(None, False)] = None
    request_id: Any = _IGNORED
    priority: Any = _IGNORED
    user: Any = _IGNORED
    metadata: Any = _IGNORED
    store: Any = _IGNORED
    service_tier: Any = _IGNORED
    safety_identifier: Any = _IGNORED
    cache_control: Any = _IGNORED
    prompt_cache_key: Any = _IGNORED
    cache_salt: Any = _IGNORED
    prompt_cache_options: Any = _IGNORED
    prompt_cache_retention: Any = _IGNORED

    method: str | None = None
    k: int = Field(3, ge=1, description="how many passages to retrieve")
    gamma: float = Field(1.0, ge=0, allow_inf_nan=False, description="scale of the update (regrad methods)")
    passage_ids: PassageIds | None = Field(None, description="use these passages instead of retrieving")
    release: ValidText | None = Field(
        None, min_length=1, max_length=100, description="answer from this release, regardless of the shares"
    )
    contributions: Contributions | None = Field(None, description="measure each passage's part in the answer")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Completing:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes only with stream: true")
        return self


class ChatRequest(Completing):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(
        min_length=1,
        description="the last one is the user's question; passages are searched for by it and the messages before it, "
        "but for those of role system or developer",
        examples=[[{"role": "user", "content": "Where was Ada Lovelace born?"}]],
    )
    max_completion_tokens: int | None = Field(None, ge=1)

    logprobs: Annotated[Any, Only(None, False)] = None
    top_logprobs: Annotated[Any, Only(None, 0)] = None
    response_format: Annotated[Any, Only(None, {"type": "text"})] = None
    tools: Annotated[Any, Only(None, [])] = None
    tool_choice: Annotated[Any, Only(None, "none", "auto")] = None
    parallel_tool_calls: Any = _IGNORED
    functions: Annotated[Any, Only(None, [])] = None
    function_call: Annotated[Any, Only(None, "none", "auto")] = None
    modalities: Annotated[Any, Only(None, ["text"])] = None
    audio: Annotated[Any, Only(None)] = None
    moderation: Annotated[Any, Only(None)] = None
    prediction: Any = _IGNORED
    reasoning_effort: Annotated[Any, Only(None, "none")] = None
    chat_template_kwargs: Annotated[Any, Only(None, {})] = None
    add_generation_prompt: Annotated[Any, Only(None, True)] = None
    continue_final_message: Annotated[Any, Only(None, False)] = None
    add_special_tokens: Annotated[Any, Only(None, False)] = None
    thinking: Annotated[Any, Only(None, {"type": "disabled"})] = None
    include_reasoning: Any = _IGNORED
    separate_reasoning: Any = _IGNORED
    stream_reasoning: Any = _IGNORED
    verbosity: Annotated[Any, Only(None, "medium")] = None
    web_search_options: Annotated[Any, Only(None)] = None


class CompletionRequest(Completing):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[QuestionText, BeforeValidator(_only_one)] = Field(
        min_length=1, description="goes to the model as it is", examples=["Ada Lovelace was born in"]
    )

    logprobs: Annotated[Any, Only(None, False)] = None
    suffix: Annotated[Any, Only(None, "")] = None


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
        """The choices of a chunk with some text, or of the one that ends the answer."""
        if self.chat:
            return [_delta({"content": text} if finish is None else {}, finish)]
        return [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]


CHAT = Dialect("messages", "chatcmpl", "chat.completion.chunk", chat=True)
TEXT_COMPLETION = Dialect("prompt", "cmpl", "text_completion", chat=False)


def chat_completion(reply: Reply) -> ChatCompletion:
    """A whole answer to a chat."""
    message = AssistantMessage(content=reply.answered.text)
    choice = ChatChoice(message=message, finish_reason=reply.answered.finish_reason)
    return ChatCompletion(choices=[choice], **_completed(CHAT, reply))


def completion(reply: Reply) -> Completion:
    """A whole answer to a prompt."""
    choice = TextChoice(text=reply.answered.text, finish_reason=reply.answered.finish_reason)
    return Completion(choices=[choice], **_completed(TEXT_COMPLETION, reply))


async def chunks(dialect: Dialect, ask: Ask, include_usage: bool, events: Events) -> Chunks:
    """A completion as it comes, in chunks; an error ends them."""
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
        if isinstance(event, Retrieved):
            continue
        if isinstance(event, Piece):
            yield sse({**head, "choices": dialect.piece(event.text)})
        elif isinstance(event, Reply):
            last = [{**head, "choices": dialect.piece("", event.answered.finish_reason)}]
            if include_usage:
                last.append({**head, "choices": [], "usage": usage_of(event)})
            last[-1]["regrad"] = grounds(event)
            for chunk in last:
                yield sse(chunk)
        else:
            yield sse({"error": event.body})
            return
    yield sse("[DONE]")


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
